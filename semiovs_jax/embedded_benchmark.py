"""Writes the embedded benchmark "shapes" where a config asks for it and it is missing."""

import logging
from collections.abc import Iterator

import jax
import ml_collections
from jax.experimental import multihost_utils

from data_pipelines.files import expand, is_remote
from data_pipelines.shapes.benchmark import outdated, write_shapes

_logger = logging.getLogger(__name__)


def lacks_benchmark(config: ml_collections.ConfigDict) -> bool:
    """Whether the config asks for the embedded benchmark and nothing is at `config.data.root`."""
    if not config.data.get("make"):
        return False
    return not is_remote(config.data.root) and not expand(config.data.root).exists()


def outdated_benchmark(config: ml_collections.ConfigDict) -> Iterator[str]:
    """A message if the benchmark that the config asks for is there as another version of this package has drawn it.

    The shipped weights do not know such images: a run would end with scores of another task.
    """
    is_made = config.data.get("make") and not is_remote(config.data.root)
    if is_made and (fault := outdated(expand(config.data.root))):
        yield f"config.data.root={fault}"


def make_benchmark(config: ml_collections.ConfigDict) -> None:
    """Writes the embedded benchmark where it is missing; every process must call this."""
    if lacks_benchmark(config) and jax.process_index() == 0:
        root = expand(config.data.root)
        _logger.info("writing the benchmark %r to %s", config.data.make, root)
        write_shapes(root)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the benchmark is written")
