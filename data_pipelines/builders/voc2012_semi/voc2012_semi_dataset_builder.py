"""Pascal VOC 2012 for semi-supervised segmentation: the trainval photographs with the augmented labels."""

from types import MappingProxyType
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.builders import voc
from data_pipelines.builders.archives import opened_members
from data_pipelines.builders.base import ImageBuilder, names_by_stem, row_units
from data_pipelines.builders.downloads import Archive
from data_pipelines.builders.samples import Unit

LABELS = Archive(
    ("SegmentationClassAug.zip", "SegmentationClass.zip", "ground_truth_pascal_voc.zip"),
    "the link to SegmentationClass in the README of github.com/LiheYoung/UniMatch",
    "SegmentationClassAug",
)


class Builder(ImageBuilder):
    """Splits "train" (all photographs with an augmented label that are not in "val") and "val" (VOC's own)."""

    VERSION = tfds.core.Version("1.0.0")
    LABELED = True
    ARCHIVES = MappingProxyType({"images": (voc.VOC2012,), "labels": (LABELS,)})
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    SegmentationClassAug.zip (UniMatch's README links to it as SegmentationClass) or the folder SegmentationClassAug;
    without internet also VOCtrainval_11-May-2012.tar or the folder VOCdevkit that it is extracted to.
    """

    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """See the base class. Ids are "JPEGImages/ID", sorted."""
        labels = self.locate("labels", dl_manager)
        images = self.locate("images", dl_manager)
        photo_files, label_files = opened_members(images), opened_members(labels)
        folder = voc.year_folder(photo_files, ("VOC2012",))
        photos = voc.photographs(photo_files, folder)
        planes = names_by_stem(label_files, ".png")
        val = set(voc.read_list(photo_files, f"{folder}ImageSets/Segmentation/val.txt"))
        units = {}
        for split, stems in {"train": planes.keys() - val, "val": val}.items():
            rows = voc.labeled_rows(photo_files, photos, label_files, planes, sorted(stems))
            units[split] = row_units(images, rows, labels)
        return units
