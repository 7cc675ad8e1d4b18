"""Published split lists, downloaded from their repositories at a pinned revision and verified.

The lists themselves are not shipped. A JSON file for each dataset, beside this module, has their URL and, for each
list, its number of lines and its sha256. The lists of Pascal VOC are from UniMatch (the original protocol 92 to 1464,
the blended 1_16 to 1_4, U2PL's u2pl_1_16 to u2pl_1_4), those of Pascal Context from SemiOVS.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pooch

from data_pipelines.errors import InputError, first_few

_FOLDER = Path(__file__).parent
_TIMEOUT = 30.0  # seconds without a byte


class ListFacts(NamedTuple):
    """Facts about a published list: its number of lines and the sha256 of its bytes."""

    lines: int
    sha256: str


@dataclass(frozen=True)
class PublishedSplits:
    """The published lists of a dataset, and their repository.

    Attributes:
        name: The dataset.
        repository: OWNER/NAME of the GitHub repository.
        revision: The pinned commit.
        folder: Folder of the lists in the repository.
        url: URL of a list, a template with `{repository}`, `{revision}`, `{folder}` and `{path}`.
        lists: Facts by a list's path below `folder` ("92/labeled.txt", "val.txt").
    """

    name: str
    repository: str
    revision: str
    folder: str
    url: str
    lists: Mapping[str, ListFacts]

    def address(self, path: str) -> str:
        """The URL of the list `path`."""
        return self.url.format(repository=self.repository, revision=self.revision, folder=self.folder, path=path)


def load_published(name: str) -> PublishedSplits:
    """Reads the facts about a dataset's published lists; raises `InputError` if there are none."""
    path = _FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.json")))
        raise InputError(
            f"--dataset={name} has no published splits: name one of {known}, or draw a split with --make_split=N"
        )
    facts = json.loads(path.read_text(encoding="utf-8"))
    lists = {list_: ListFacts(**found) for list_, found in facts.pop("lists").items()}
    return PublishedSplits(name=name, lists=lists, **facts)


def read_lists(published: PublishedSplits, folder: Path | None = None) -> dict[str, bytes]:
    """Downloads all lists, or copies them from a folder, and verifies their sha256.

    A download that fails or has a wrong sha256 is tried twice more.

    Args:
        published: Facts about the lists.
        folder: `published.folder` in a copy of the repository, with "92/labeled.txt" and so on below it; None
            downloads the lists.

    Returns:
        Contents of the lists by path.

    Raises:
        InputError: Lists cannot be read, or differ from the published ones.
    """
    contents: dict[str, bytes] = {}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as cache:
        lists = pooch.create(
            cache,
            "",
            registry={path: facts.sha256 for path, facts in published.lists.items()},
            urls={path: str(folder / path) if folder else published.address(path) for path in published.lists},
            retry_if_failed=0 if folder else 2,
        )
        download = _copy if folder else pooch.HTTPDownloader(timeout=_TIMEOUT)
        for path, url in lists.urls.items():
            try:
                contents[path] = Path(lists.fetch(path, downloader=download)).read_bytes()
            except OSError as error:  # includes the errors of requests
                faults.append(f"{url} ({error.strerror or error})")
                if not folder:
                    break  # without internet, each list would wait for the timeout
            except ValueError as error:  # its first sentence has both sha256
                faults.append(f"{url} ({str(error).split('. ')[0]})")
    if faults:
        raise InputError(
            f"{f'--from_folder={folder}' if folder else published.repository}: {len(contents)} of "
            f"{len(published.lists)} lists could be read and verified, but not {first_few(faults)}; try again, or on a "
            f"machine with internet get {published.repository} at {published.revision} with unchanged line ends (git: "
            f"core.autocrlf=false), and pass its folder {published.folder} here with --from_folder"
        )
    return contents


def _copy(source: str, target: str, _: pooch.Pooch) -> None:
    shutil.copyfile(source, target)
