"""Fixtures of several files of this folder."""

import pytest

from data_pipelines.labels import shard_store
from tests.fake_ovs import SHARD_RECORDS


@pytest.fixture(scope="module")
def small_shards():
    """Shards of a few labels, so that a small set has several; use it by `pytestmark`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_store, "FEWEST_RECORDS", SHARD_RECORDS)
        yield
