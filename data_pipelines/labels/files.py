"""Cached OVS labels in files of their own, one PNG a plane."""

import dataclasses
from pathlib import Path

from data_pipelines.sources.records import File


@dataclasses.dataclass(frozen=True)
class FileLabels:
    """Labels in files of their own."""

    folder: Path

    @property
    def bad(self) -> dict[str, str]:
        """Why an image has no label, by id; reads the files anew each time."""
        root = self.folder / "bad"
        return {
            str(path.relative_to(root).with_suffix("")): path.read_text(encoding="utf-8")
            for path in sorted(root.rglob("*.txt"))
        }

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has its label."""
        return plane_path(self.folder, "labels", id_).exists()

    def planes(self, id_: str) -> tuple[File, File]:
        """Label and confidence of the image, which need not be there."""
        return File(plane_path(self.folder, "labels", id_)), File(plane_path(self.folder, "confidence", id_))

    def faults(self) -> list[str]:
        """Nothing: what is not there is not labeled."""
        return []


def plane_path(folder: Path, kind: str, id_: str) -> Path:
    """Where the plane `kind` ("labels" or "confidence") of the image `id_` lies in a tree of files."""
    return folder / kind / f"{id_}.png"
