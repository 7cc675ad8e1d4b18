"""The command `semiovs`, which runs the others by their name."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from semiovs_jax.__main__ import Command, find_commands
from tests.compilation import FAST_COMPILATION
from tests.experiment import shrunk_demo

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": FAST_COMPILATION,
}

# As pip writes it for an entry of [project.scripts].
SCRIPT = """
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""

# A command that computes in a worker process, which imports it again.
DOOR = """
import multiprocessing, os, signal, sys
from data_pipelines.command import command_end

def square(number):
    return number * number

if __name__ == "__main__":
    with command_end():
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            print(__name__, sys.argv[1:], workers.apply(square, [3]), flush=True)
        {end}
"""
RUNS_DOOR = "from semiovs_jax.__main__ import run_module; "

CONFIG = """
from pathlib import Path
from tests.experiment import shrunk_demo

def get_config():
    changes = {{"method.name": "supervised", "method.ood": "none", "train.panel_images": 0, "data.num_workers": 1}}
    return shrunk_demo(Path({folder!r}), **changes, **{{"train.steps": 1}})
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["semiovs"]
    module, _, function = entry.partition(":")
    path = tmp_path_factory.mktemp("bin") / "semiovs"
    path.write_text(SCRIPT.format(module=module, function=function))
    return path


def _run(*command: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], env=ENVIRONMENT, cwd=folder, capture_output=True, text=True)


def test_a_command_is_a_module_with_a_main(tmp_path: Path):
    (tmp_path / "one.py").write_text('"""Does one thing: python -m p.one --x."""\ndef main(): ...')
    (tmp_path / "other.py").write_text('"""Does another.\n\nMore."""\nCOMMAND = "second"\ndef main(): ...')
    (tmp_path / "library.py").write_text('"""Helps."""\ndef help(): ...\nraise AssertionError')
    (tmp_path / "__main__.py").write_text('"""Runs."""\ndef main(): ...')
    assert find_commands(tmp_path) == {
        "one": Command(f"{tmp_path.name}.one", "Does one thing."),
        "second": Command(f"{tmp_path.name}.other", "Does another."),
    }


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_commands_are_listed_without_jax(script: Path, arguments: list[str]):
    done = _run("-X", "importtime", script, *arguments)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: semiovs COMMAND ")
    for name in ("check_data", "compare", "evaluate", "label", "predict"):
        assert f"\n  {name} " in done.stdout
    assert "\n  train       Trains, or continues a run.\n" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "flax", "numpy", "absl"}


def test_the_package_is_the_same_command():
    done = _run("-m", "semiovs_jax")
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "usage: python -m semiovs_jax COMMAND [--FLAG=VALUE ...]",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", "error: semiovs trian: no such command (did you mean train?); there are check_data, compare, "),
        ("--workdir=a", "error: semiovs --workdir=a: no such command; there are check_data, compare, "),
        ("experiment", "error: semiovs experiment: no such command"),
    ],
)
def test_an_unknown_command_is_told_with_those_that_there_are(script: Path, name: str, message: str):
    done = _run(script, name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)


def test_usage_names_the_command_as_it_was_started(script: Path):
    assert _run(script, "compare", "--help").stdout.startswith("usage: semiovs compare ")


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGTERM)", 143), ("os.kill(os.getpid(), signal.SIGINT)", -2)],
)
def test_workers_signals_and_status_are_those_of_python_m(tmp_path: Path, end: str, status: int):
    (tmp_path / "door.py").write_text(DOOR.format(end=end))
    outputs = []
    for command in (["-m", "door", "a"], ["-c", f"{RUNS_DOOR}run_module('door', ['semiovs door', 'a'])"]):
        environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == "__main__ ['a'] 9\n"
    assert outputs[1] == outputs[0]


@pytest.mark.slow
def test_a_run_with_a_worker_ends_with_what_is_written_and_the_next_command(script: Path, tmp_path: Path):
    shrunk_demo(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(tmp_path)))
    checked = _run(script, "check_data", "--config=config.py", "--json=found.json", folder=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines()[-1] == "usable"
    assert checked.stderr.splitlines()[-2:] == [
        "wrote found.json",
        "next: semiovs train --config=config.py --workdir=RUN",
    ]
    done = _run(script, "train", "--config=config.py", "--workdir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    written = ", ".join(sorted(path.name for path in (tmp_path / "run").iterdir()))
    assert f"the run is in run: {written}\n" in done.stderr
    assert "next: semiovs evaluate --workdir=run\n  or: semiovs predict --workdir=run --source=" in done.stderr
