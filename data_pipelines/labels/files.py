"""Reads cached OVS labels from a tree of PNG files."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

from data_pipelines.files import is_remote, objects_below
from data_pipelines.images.png import read_texts
from data_pipelines.labels.parallel import map_in_chunks
from data_pipelines.labels.provenance import KEYWORD, Provenance, read_adopted
from data_pipelines.sources.records import File, UnreadableError


@dataclasses.dataclass(frozen=True, slots=True)
class LabelFile(File):
    """The PNG of a label or of a confidence."""

    def read(self) -> bytes:
        """Reads all bytes; raises `UnreadableError` if the file is missing or damaged."""
        return self._read()[0]

    def texts(self) -> dict[str, str]:
        """The texts of the PNG by keyword; raises `UnreadableError` if the file is missing or damaged."""
        return self._read()[1]

    def _read(self) -> tuple[bytes, dict[str, str]]:
        data = File.read(self)
        try:
            return data, read_texts(data)
        except ValueError as error:
            raise UnreadableError(f"{self.path}: damaged label ({error}); main and label make it again") from error


@dataclasses.dataclass(frozen=True)
class FileLabels:
    """A folder of labels with one PNG for each label and each confidence.

    Attributes:
        folder: The folder, see `data_pipelines.labels.cache`.
    """

    folder: Path

    @property
    def bad(self) -> dict[str, str]:
        """Why an image has no label, by id. Each access reads the files again."""
        root = self.folder / "bad"
        return {
            str(path.relative_to(root).with_suffix("")): path.read_text(encoding="utf-8", errors="replace")
            for path in sorted(root.rglob("*.txt"))
        }

    def is_labeled(self, id_: str) -> bool:
        """Whether the label of the image exists; on object storage, whether it did when this was first asked."""
        if is_remote(self.folder):
            return f"{id_}.png" in self._listed
        return plane_path(self.folder, "labels", id_).exists()

    @functools.cached_property
    def _listed(self) -> frozenset[str]:
        return objects_below(self.folder / "labels")

    def planes(self, id_: str) -> tuple[LabelFile, LabelFile]:
        """Label and confidence of the image; the files may be missing."""
        return LabelFile(plane_path(self.folder, "labels", id_)), LabelFile(plane_path(self.folder, "confidence", id_))

    def provenances(self, ids: Sequence[str], pool: Executor) -> Iterator[Provenance | UnreadableError | None]:
        """See `RecordedLabels.provenances`."""
        adopted = read_adopted(self.folder)

        def read(id_: str) -> Provenance | UnreadableError | None:
            label, confidence = self.planes(id_)
            try:
                confidence.texts()
                text = label.texts().get(KEYWORD)
                return adopted.get(id_) if text is None else Provenance.read(text)
            except UnreadableError as error:
                return error
            except ValueError:
                return UnreadableError(f"{label.path}: damaged label (its text is {text!r})")

        return map_in_chunks(pool, read, ids)

    def faults(self) -> list[str]:
        """No faults: an image without a file counts as not labeled."""
        return []


def plane_path(folder: Path, kind: str, id_: str) -> Path:
    """Path of the "labels" or "confidence" PNG of an image."""
    return folder / kind / f"{id_}.png"


def bad_path(folder: Path, id_: str) -> Path:
    """Path of the text that gives the reason why an image has no label."""
    return folder / "bad" / f"{id_}.txt"
