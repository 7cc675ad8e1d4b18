"""A tree of a user's own data."""

import pytest

from tests.custom_tree import write_custom
from tests.ovs.tiny_clip import write_clip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where configs/custom.py looks for data."""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.safetensors")
    return write_custom(tmp_path / "data" / "custom")
