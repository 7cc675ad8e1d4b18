"""Fixtures of several files of this folder."""

import pytest

from data_pipelines.labels import shard_store
from semiovs_jax.ovs.labeling import job
from tests.fake_ovs import SHARD_RECORDS


@pytest.fixture(scope="package", autouse=True)
def several_canvases():
    """Small sets have as many canvases as large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "IMAGES_A_CANVAS", 1)
        yield


@pytest.fixture(scope="module")
def small_shards():
    """Shards of a few labels, so that a small set has several; use it by `pytestmark`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_store, "FEWEST_RECORDS", SHARD_RECORDS)
        yield
