"""Temporary folders for files on their way to or from object storage."""

import tempfile

_PREFIX = "semiovs_jax_objects_"


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder below $TMPDIR, removed with the context, or when the process ends; SIGKILL leaves it there."""
    return tempfile.TemporaryDirectory(prefix=_PREFIX)
