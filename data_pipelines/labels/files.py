"""Reads cached OVS labels from a tree of PNG files."""

import dataclasses
from pathlib import Path

from data_pipelines.sources.records import File


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
        """Whether the label of the image exists."""
        return plane_path(self.folder, "labels", id_).exists()

    def planes(self, id_: str) -> tuple[File, File]:
        """Label and confidence of the image; the files may be missing."""
        return File(plane_path(self.folder, "labels", id_)), File(plane_path(self.folder, "confidence", id_))

    def faults(self) -> list[str]:
        """No faults: an image without a file counts as not labeled."""
        return []


def plane_path(folder: Path, kind: str, id_: str) -> Path:
    """Path of the "labels" or "confidence" PNG of an image."""
    return folder / kind / f"{id_}.png"


def bad_path(folder: Path, id_: str) -> Path:
    """Path of the text that gives the reason why an image has no label."""
    return folder / "bad" / f"{id_}.txt"
