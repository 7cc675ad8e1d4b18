"""W&B's own reader opens what an offline run writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiovs_jax.writers import writer_faults
from tests.writers.run import CONFIG, write_run

pytest.importorskip("wandb", reason="needs the extra wandb")


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an account, whose settings are nowhere else."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    (tmp_path / "home").mkdir()


def _read(*arguments: str) -> str:
    command = (sys.executable, "-m", "wandb", "leet", "inspect", "--json", *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_offline_starts_of_a_run_are_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir = tmp_path / "runs" / "demo"
    write_run(workdir, "wandb")
    starts = sorted((workdir / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    assert len(starts) == 2
    first, last = (json.loads(_read("--summary", str(start))) for start in starts)
    assert first["run_id"] == last["run_id"] == (workdir / "wandb" / "run_id").read_text()
    assert (first["state"], last["state"]) == ("failed", "finished")
    assert (last["project"], last["name"], last["config"]) == ("semiovs_jax", "runs/demo", CONFIG)
    assert (last["summary"]["best_miou"], last["summary"]["step"]) == (0.4, 4)
    assert (starts[1] / "files" / "summary.txt").read_text() == "continues after 1\n"
    panel = Image.open(starts[1] / "files" / last["summary"]["panel"]["path"])
    assert np.asarray(panel)[0, 0].tolist() == [40, 40, 40]

    rows = [[json.loads(line)["history"] for line in _read(str(start)).splitlines() if '"history"' in line[:40]]
            for start in starts]  # fmt: skip
    losses = [[(row["item"]["step"], row["item"]["train/loss"]) for row in start if "train/loss" in row["item"]]
              for start in rows]  # fmt: skip
    assert losses == [[(1, 1.0), (2, 0.5), (3, 1 / 3)], [(2, 0.5), (3, 1 / 3), (4, 0.25)]]
    numbers = [[row["item"]["_step"] for row in start] for start in rows]
    assert all(start == sorted(set(start)) for start in numbers)
    assert numbers[0][3:] == numbers[1][:6]  # repeated rows have their numbers, and the new ones follow


def test_without_an_account_a_run_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch):
    command = "from semiovs_jax.writers import writer_faults; print(writer_faults('wandb'))"
    found = subprocess.run((sys.executable, "-c", command), check=True, capture_output=True, text=True).stdout
    assert found == (
        "['config.train.writers: wandb: there is no API key; run wandb login, or set WANDB_MODE=offline']\n"
    )
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert writer_faults("wandb") == []
