"""All images below a folder, or in a zip or tar archive."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.builders.archives import opened_members
from data_pipelines.builders.base import SourceBuilder, image_rows, row_units
from data_pipelines.builders.downloads import files_in
from data_pipelines.builders.samples import Unit
from data_pipelines.errors import InputError
from data_pipelines.sources.folders import is_image


class Builder(SourceBuilder):
    """One split, "train". The source is a folder, a zip archive or an uncompressed tar archive."""

    VERSION = tfds.core.Version("1.0.0")

    def files(self) -> Sequence[Path]:
        """The archive, or the images below the folder, sorted; raises `InputError` if it is missing."""
        source = self.given()
        if not source.exists():
            raise InputError(f"--source={source}: no such folder or archive; name one with images")
        return [path for path in files_in(source) if path == source or is_image(path.name)]

    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """See the base class. Ids are the paths without suffix, sorted."""
        self.files()
        return {"train": row_units(self.given(), image_rows(opened_members(self.given())))}
