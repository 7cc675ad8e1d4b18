"""--help and wrong flags of the commands with --config, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_help_has_the_flags_and_every_key_with_its_meaning_and_value():
    done = _run("semiovs_jax.main", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Trains, or continues a run: python -m semiovs_jax.main --config=configs/demo.py")
    for flag in ("--config=FILE[:ARGUMENT]", "--workdir=VALUE", "--fork_from=VALUE", "--[no]distributed"):
        assert f"\n  {flag}" in done.stdout
    assert "with the values of configs/common.py:" in done.stdout
    assert re.search(r"\n  --config\.method\.ood_weight=1\.0 +# lambda\n", done.stdout)
    assert "\n  --config.data.scale_range='(0.5, 2.0)'" in done.stdout


def test_help_has_the_values_of_the_config_that_is_given(tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import demo\ndef get_config():\n  config = demo.get_config().unlock()\n"
        "  config.method.mine = 3  # of my method\n  return config\n"
    )
    done = _run("semiovs_jax", "train", f"--config={mine}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Trains, or continues a run: python -m semiovs_jax train --config=" in done.stdout
    assert f"with the values of {mine}:" in done.stdout
    assert re.search(r"\n  --config\.method\.mine=3 +# of my method\n", done.stdout)
    assert re.search(r"\n  --config\.data\.crop_size=65\n", done.stdout)


def test_help_is_printed_with_a_config_that_cannot_be_loaded():
    done = _run("semiovs_jax.evaluate", "--workdir=none", "--help")
    assert done.returncode == 0
    assert "configs/common.py, as the config cannot be loaded (--workdir=" in done.stdout
    assert "--which=best|latest       Which checkpoint. Default: best." in done.stdout


def test_training_of_a_model_that_labels_has_keys_of_its_own():
    done = _run("semiovs_jax.ovs.train", "--help")
    assert done.returncode == 0
    assert re.search(r"\n  --config\.file=shapes_sed\.safetensors +# written to the workdir\n", done.stdout)
    assert "config.ovs." not in done.stdout.partition("\nflags:")[2]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            "main",
            ["error: --config, --workdir: missing; for example: python -m semiovs_jax.main --config=configs/demo.py "],
        ),
        ("evaluate", ["error: --workdir: missing; for example: python -m semiovs_jax.evaluate --workdir=runs/voc92"]),
        (
            "label --cofnig=configs/demo.py",
            [
                "error: --config: missing; for example: python -m semiovs_jax.label --config=configs/voc92.py",
                "--cofnig: no such flag (did you mean --config?); there are --config, --source, ",
            ],
        ),
        (
            "main --config=configs/demo.py --workdir=none --config.optim.lr=1 --config.seeds=2",
            ["error: --config.optim.lr: no such key (did", "--config.seeds: no such key (did you mean seed?); config "],
        ),
        ("main --config=configs/demo.py --workdir=none x", ["error: unexpected arguments: x; write flags as --NAME="]),
        ("main --config=configs/demo.py --workdir=none --config.seed=a", ["error: flag --config.seed=a: invalid lite"]),
    ],
)
def test_wrong_flags_are_told_with_what_there_is(arguments: str, lines: list[str]):
    module, *rest = arguments.split()
    done = _run(f"semiovs_jax.{module}", *rest)
    assert (done.returncode, done.stdout) == (2, "")
    found = done.stderr.splitlines()
    assert [line[: len(start)] for line, start in zip(found, lines, strict=True)] == lines
