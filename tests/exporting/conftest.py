"""A tiny run to export."""

from pathlib import Path

import pytest

from tests.experiment import shrunk_demo
from tests.saved_run import save_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a supervised run on the shapes benchmark."""
    folder = tmp_path_factory.mktemp("export")
    return save_run(folder / "run", shrunk_demo(folder, **{"method.name": "supervised", "method.ood": "none"}))
