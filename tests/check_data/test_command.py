"""What the command refuses, and its exit status."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import custom
from data_pipelines.errors import InputError
from semiovs_jax import check_data
from tests.check_data.report import WEIGHTS
from tests.custom_tree import label, write_label


def test_a_config_of_something_else_is_refused(root, capsys):
    from configs import ovs_shapes

    with pytest.raises(InputError, match="no section method, ovs, eval; name an experiment"):
        check_data.main(SimpleNamespace(config=ovs_shapes.get_config(), json=""))


def _run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    project = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "semiovs_jax.check_data", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_faults_by_its_status(root, tmp_path):
    config = f"--config={Path(custom.__file__)}"
    write_label(root / "indices/07.png", np.where(label() == 1, 255, 0).astype(np.uint8))
    root.rename(tmp_path / "elsewhere")
    weights = [f"--config.{key}={value}" for key, value in WEIGHTS.items()]
    done = _run(tmp_path, config, "--config.data.root=elsewhere", *weights)
    assert done.returncode == 1, done.stderr
    assert "elsewhere/indices/07.png: label image holds only the values 0 and 255" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 fault"
    misspelled = _run(tmp_path, config, "--config.data.rot=elsewhere")
    assert misspelled.returncode == 2
    assert misspelled.stderr.startswith("error: --config.data.rot: no such key (did you mean root?); config.data has ")
    assert "Traceback" not in misspelled.stderr
    missing = _run(tmp_path, "--config=nowhere.py")
    assert missing.returncode == 2
    assert "nowhere.py" in missing.stderr
