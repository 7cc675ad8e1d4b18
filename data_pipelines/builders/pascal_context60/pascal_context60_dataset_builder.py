"""Pascal Context with 59 classes and background: photographs of VOC 2010 with its labels."""

from types import MappingProxyType
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.builders import voc
from data_pipelines.builders.archives import opened_members
from data_pipelines.builders.base import ImageBuilder, names_by_stem, row_units
from data_pipelines.builders.downloads import Archive
from data_pipelines.builders.samples import Unit

LABELS = Archive(
    ("SegmentationClassContext60.zip", "ground_truth_pascal_context.zip"),
    "the link to SegmentationClassContext60 in data/README.md of github.com/wooseok-shin/SemiOVS",
    "SegmentationClassContext60",
)


class Builder(ImageBuilder):
    """Splits "train" and "val", by the folder of the label."""

    VERSION = tfds.core.Version("1.0.0")
    LABELED = True
    ARCHIVES = MappingProxyType({"images": (voc.VOC2010, voc.VOC2012), "labels": (LABELS,)})
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    SegmentationClassContext60.zip (data/README.md of SemiOVS' repository links to it) or the folder
    SegmentationClassContext60 with train/ID.png and val/ID.png. The photographs are taken from
    VOCtrainval_03-May-2010.tar or VOCtrainval_11-May-2012.tar if one is there, or the folder VOCdevkit that it is
    extracted to; otherwise the latter is downloaded.
    """

    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """See the base class. Ids are "JPEGImages/ID", sorted."""
        labels = self.locate("labels", dl_manager)
        images = self.locate("images", dl_manager)
        photo_files, label_files = opened_members(images), opened_members(labels)
        photos = voc.photographs(photo_files, voc.year_folder(photo_files, ("VOC2010", "VOC2012")))
        units = {}
        for split in ("train", "val"):
            planes = names_by_stem(label_files, ".png", split)
            rows = voc.labeled_rows(photo_files, photos, label_files, planes, sorted(planes))
            units[split] = row_units(images, rows, labels)
        return units
