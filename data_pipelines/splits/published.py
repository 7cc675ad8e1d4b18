"""The split lists that the field publishes, taken from their repositories at a pinned revision and verified.

Where they are published, how many lines each has and its sha256 are facts in JSON files beside this one, one a dataset;
the lists themselves are not shipped. Pascal VOC's are those of UniMatch (the original protocol 92 to 1464, the blended
1_16 to 1_4, U2PL's u2pl_1_16 to u2pl_1_4), Pascal Context's those of SemiOVS.
"""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import InputError, first_few

_FOLDER = Path(__file__).parent
_TIMEOUT = 30.0  # seconds without a byte
_PAUSES = (1.0, 5.0)  # seconds before another attempt
_PASSING = frozenset({408, 429, 500, 502, 503, 504})  # HTTP statuses that may be another the next time


class ListFacts(NamedTuple):
    """What a published list is: its number of lines and the sha256 of its bytes."""

    lines: int
    sha256: str


@dataclass(frozen=True)
class PublishedSplits:
    """Where the lists of a dataset are published, and what they are.

    Attributes:
        name: The dataset.
        repository: OWNER/NAME of the GitHub repository.
        revision: The pinned commit.
        folder: Folder of the lists in the repository.
        url: Address of a list, with `{repository}`, `{revision}`, `{folder}` and `{path}` left open.
        lists: Facts by a list's path below `folder` ("92/labeled.txt", "val.txt").
    """

    name: str
    repository: str
    revision: str
    folder: str
    url: str
    lists: Mapping[str, ListFacts]

    def address(self, path: str) -> str:
        """Where to fetch the list `path`."""
        return self.url.format(repository=self.repository, revision=self.revision, folder=self.folder, path=path)


def load_published(name: str) -> PublishedSplits:
    """Reads the facts of a dataset's published lists; raises `InputError` if there are none."""
    path = _FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.json")))
        raise InputError(
            f"--dataset={name} has no published splits: name one of {known}, or draw a split with --make_split=N"
        )
    facts = json.loads(path.read_text(encoding="utf-8"))
    lists = {list_: ListFacts(**found) for list_, found in facts.pop("lists").items()}
    return PublishedSplits(name=name, lists=lists, **facts)


def fetch_lists(published: PublishedSplits) -> dict[str, bytes]:
    """Downloads all lists and verifies them; what may pass is tried again.

    Returns:
        Their bytes by path.

    Raises:
        InputError: A list cannot be fetched, or is not the published one.
    """
    elsewhere = (
        f"on a machine with internet, get {published.repository} at {published.revision} and pass its folder "
        f"{published.folder} here with --from_folder"
    )
    contents = {}
    for path in published.lists:
        address = published.address(path)
        try:
            contents[path] = _download(address)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"{address}: cannot be fetched ({error}); try again later, or {elsewhere}") from error
    mend = f"something on the way changes the bytes: fetch again, or {elsewhere}"
    verify_lists(published, contents, published.address, mend)
    return contents


def read_lists(published: PublishedSplits, folder: Path) -> dict[str, bytes]:
    """Reads all lists from a folder laid out as the repository's, and verifies them.

    Args:
        published: Facts of the lists.
        folder: The folder `published.folder` of a copy of the repository, with "92/labeled.txt" and so on below it.

    Returns:
        Their bytes by path.

    Raises:
        InputError: A list cannot be read, or is not the published one.
    """
    contents, faults = {}, []
    for path in published.lists:
        try:
            contents[path] = (folder / path).read_bytes()
        except OSError as error:
            faults.append(f"{folder / path} ({error.strerror or error})")
    if faults:
        raise InputError(
            f"--from_folder={folder}: {len(faults)} of {len(published.lists)} lists cannot be read: "
            f"{first_few(faults, 3)}; name the folder {published.folder} of a copy of {published.repository} at "
            f"{published.revision}"
        )
    mend = (
        f"copy the folder {published.folder} of {published.repository} at {published.revision} again, line ends as "
        "they are (git: core.autocrlf=false)"
    )
    verify_lists(published, contents, lambda path: str(folder / path), mend)
    return contents


def verify_lists(
    published: PublishedSplits, contents: Mapping[str, bytes], place: Callable[[str], str], mend: str
) -> None:
    """Compares lists with the published facts.

    Args:
        published: The facts.
        contents: Bytes by path of all lists.
        place: What messages call the list of a path.
        mend: What to do if one is another.

    Raises:
        InputError: Lists differ; all are named with what was expected and found.
    """
    faults = []
    for path, expected in published.lists.items():
        found = ListFacts(len(contents[path].splitlines()), hashlib.sha256(contents[path]).hexdigest())
        if found != expected:
            faults.append(
                f"{place(path)}: expected sha256 {expected.sha256} and {expected.lines} lines, found {found.sha256} "
                f"and {found.lines} lines"
            )
    if faults:
        raise InputError(f"{len(faults)} list(s) are not those published: {first_few(faults)}; {mend}")


def _download(address: str) -> bytes:
    for pause in _PAUSES:
        try:
            return _get(address)
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(pause)
    return _get(address)


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=_TIMEOUT) as response:
        return response.read()
