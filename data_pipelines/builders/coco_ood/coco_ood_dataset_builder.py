"""COCO's train2017 photographs without annotations, as out-of-distribution images."""

from types import MappingProxyType
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.builders.archives import opened_members
from data_pipelines.builders.base import ImageBuilder, image_rows, row_units
from data_pipelines.builders.downloads import Archive
from data_pipelines.builders.samples import Unit

IMAGES = Archive(("train2017.zip",), "http://images.cocodataset.org/zips/train2017.zip", "train2017")


class Builder(ImageBuilder):
    """One split, "train"."""

    VERSION = tfds.core.Version("1.0.0")
    ARCHIVES = MappingProxyType({"images": (IMAGES,)})
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Only without internet: train2017.zip from cocodataset.org, or the folder train2017 that it is extracted to.
    """

    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """See the base class. Ids are those of the folder train2017 ("000000000009"), sorted."""
        images = self.locate("images", dl_manager)
        return {"train": row_units(images, image_rows(opened_members(images), "train2017"))}
