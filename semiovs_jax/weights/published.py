"""Published weights: what there is, where, and what to do with it. The table is `published.json`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_TABLE = Path(__file__).with_name("published.json")


class PublishedFile(NamedTuple):
    """One file.

    Attributes:
      url: where it is published.
      sha256: hex SHA-256 of its bytes, or the first digits of it, as published; None if nobody has published it.
    """

    url: str
    sha256: str | None


@dataclass(frozen=True)
class Published:
    """Weights of one model.

    Attributes:
      name: a file name; converted weights are NAME.safetensors.
      purpose: what they are for.
      page: for people: a page about them; where a server asks for a browser, that of the file.
      license: of the repository that publishes them; None if it states none.
      mib: size in MiB; None if unknown.
      kind: value of `--kind` of `semiovs_jax.convert`.
      files: by path below a folder of weights; the first one is converted.
    """

    name: str
    purpose: str
    page: str
    license: str | None
    mib: int | None
    kind: str
    files: Mapping[str, PublishedFile]


def load_published() -> dict[str, Published]:
    """The table by name."""
    return {name: _entry(name, **facts) for name, facts in json.loads(_TABLE.read_text(encoding="utf-8")).items()}


def _entry(name: str, files: Mapping[str, Any], **facts: Any) -> Published:
    purpose = facts.pop("for")  # a keyword in Python
    return Published(name, purpose, files={path: PublishedFile(**file) for path, file in files.items()}, **facts)


def mirrored(url: str, path: str, mirror: str) -> str:
    """The address of a published file on a mirror.

    Args:
      url: where it is published.
      path: the file's path below a folder of weights.
      mirror: a URL or a folder; "" for none.

    Returns:
      `url` with its scheme and host replaced by the mirror. If `url` has a query, its path does not name the file;
      then the mirror has it at `path`.
    """
    if not mirror:
        return url
    parts = urlsplit(url)
    return f"{mirror.rstrip('/')}/{path if parts.query else parts.path.lstrip('/')}"


def is_url(address: str) -> bool:
    """Whether an address is that of a server, not a path."""
    return re.match("https?://", address) is not None


def format_published(table: Mapping[str, Published], mirror: str) -> str:
    """The table as text, with the addresses on the mirror."""
    return "\n".join(_format(entry, mirror) for entry in table.values())


def _format(entry: Published, mirror: str) -> str:
    size = f"{entry.mib} MiB, " if entry.mib else ""
    lines = [f"{entry.name}: {entry.purpose}", f"  {size}license: {entry.license or 'not stated'}; see {entry.page}"]
    for path, file in entry.files.items():
        digest = f"sha256 {file.sha256}{'' if len(file.sha256) == 64 else '...'}" if file.sha256 else "no sha256 known"
        lines.append(f"  {mirrored(file.url, path, mirror)} ({digest})")
    return "\n".join(lines)
