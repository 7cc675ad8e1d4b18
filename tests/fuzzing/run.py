"""Tries changed files on a target, and keeps those that fail."""

import contextlib
import hashlib
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzzing.changes import changed
from tests.fuzzing.targets import TARGETS, Target

EXAMPLES = Path(__file__).parent / "examples"  # TARGET/DIGEST/FILE

_SLOW = 10.0  # core seconds to read a folder; a command that takes longer hangs
_ROUND = 1000  # examples


class Example(NamedTuple):
    """A changed file: its path below the folder of a target, and its content."""

    file: str
    content: bytes

    def __repr__(self) -> str:
        return f"{self.file} of {len(self.content)} bytes"


class Workshop:
    """A folder of valid files of a target, in which one after the other is changed."""

    def __init__(self, target: Target, folder: Path):
        self.target, self.folder = target, folder
        target.write(folder)
        self.valid = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        target.read(folder)
        self._restore()

    def examples(self) -> st.SearchStrategy[Example]:
        """Changed files."""
        files = sorted({path for pattern in self.target.files for path in self.folder.glob(pattern) if path.is_file()})
        names = [str(path.relative_to(self.folder)) for path in files]

        def of(name: str) -> st.SearchStrategy[Example]:
            return changed(name, self.valid[self.folder / name]).map(lambda content: Example(name, content))

        return st.sampled_from(names).flatmap(of)

    def try_example(self, example: Example) -> None:
        """Reads the folder with a changed file; raises whatever is raised but `InputError`."""
        start = time.process_time()
        (self.folder / example.file).write_bytes(example.content)
        try:
            self.target.read(self.folder)
        finally:
            self._restore()
        assert time.process_time() - start < _SLOW, "reading takes too long"

    def _restore(self) -> None:
        for path in [path for path in self.folder.rglob("*") if path.is_file() and path not in self.valid]:
            path.unlink()
        for path, content in self.valid.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


@contextlib.contextmanager
def workshop(name: str) -> Iterator[Workshop]:
    """A workshop in a temporary folder."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "files"  # ".." of it has no other files
        folder.mkdir()
        yield Workshop(TARGETS[name], folder)


def kept_examples(name: str) -> list[Example]:
    """The examples of a target that failed once."""
    folders = sorted((EXAMPLES / name).glob("*"))
    return [
        Example(str(path.relative_to(folder)), path.read_bytes())
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    ]


def keep(name: str, example: Example) -> Path:
    """Writes an example for `kept_examples`."""
    digest = hashlib.sha256(example.content + example.file.encode()).hexdigest()[:16]
    path = EXAMPLES / name / digest / example.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(example.content)
    return path


def fuzz(name: str, *, seed: int, seconds: float) -> tuple[int, dict[str, Path]]:
    """Tries changed files for some time.

    Returns:
        The number of examples, and the kept example of each failure.
    """
    end = time.monotonic() + seconds
    tried = 0
    failures: dict[str, Path] = {}
    last: list[tuple[str, Example]] = []
    with workshop(name) as shop:

        @settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(shop.examples())
        def attempt(example: Example) -> None:
            nonlocal tried
            if time.monotonic() > end:
                return
            tried += 1
            try:
                shop.try_example(example)
            except Exception as error:
                if (place := _place(error)) not in failures:
                    last.append((place, example))
                    raise

        while time.monotonic() < end:
            try:
                hypothesis.seed(seed)(attempt)()
            except Exception:  # or a group of them
                for place, example in dict(last).items():
                    failures[place] = keep(name, example)
                    print(f"{name}: {place}: {failures[place]}", flush=True)
            last.clear()
            seed += 1
    return tried, failures


def _place(error: Exception) -> str:
    """Where an exception was raised: the last line in this repository, and its type."""
    root = str(Path(__file__).parents[2])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
    where = f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}"
