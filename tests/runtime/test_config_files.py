"""Configs resolve from a checkout and from an installed wheel, in any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from semiovs_jax.runtime.config_files import config_folder, find_configs, has_flag

PROJECT = Path(__file__).parents[2]
_PRINTS = """
import sys
from semiovs_jax.runtime.command import run_command
run_command(lambda flags: print(flags.config.method.name, flags.config.data.labeled_split), needs_workdir=False)
"""


def _run(folder: Path, config: str, packages: Path = PROJECT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(packages)}
    command = [sys.executable, "-P", "-c", _PRINTS, f"--config={config}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("form", ["checkout", "wheel"])
def test_it_is_found_in_any_folder(form: str, tmp_path: Path):
    packages, folder = PROJECT, tmp_path / "elsewhere"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "__init__.py").write_text("raise AssertionError('the configs of another project')")
    if form == "wheel":
        packages = tmp_path / "site-packages"
        for package in ("semiovs_jax", "data_pipelines"):
            shutil.copytree(PROJECT / package, packages / package)
        shutil.copytree(PROJECT / "configs", packages / "semiovs_jax" / "configs")
    ran = _run(folder, "configs/voc.py:183,prevmatch", packages)
    assert ran.stdout == "prevmatch splits/183/labeled.txt\n", ran.stderr


def test_a_config_of_ones_own_builds_on_those_of_the_project(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from configs import voc\ndef get_config():\n  config = voc.get_config('92').unlock()\n"
        "  config.method.name = 'prevmatch'\n  return config\n"
    )
    ran = _run(tmp_path, "mine.py")
    assert ran.stdout == "prevmatch splits/92/labeled.txt\n", ran.stderr


def test_a_wrong_row_is_one_message_without_a_traceback(tmp_path: Path):
    ran = _run(tmp_path, "configs/voc.py:93")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: --config=configs/voc.py:93: no such experiment; write ")
    assert "Traceback" not in ran.stderr


def test_a_missing_file_is_told_with_those_that_there_are():
    with pytest.raises(InputError, match=r"configs/voc93\.py: no such file; .*configs/voc\.py, configs/voc92\.py$"):
        find_configs(["main.py", "--config=configs/voc93.py"])


def test_only_the_config_flag_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = find_configs(["main.py", "--config", "configs/demo.py", "--config.seed=3", "--workdir=configs/demo.py"])
    assert found == ["main.py", "--config", str(config_folder() / "demo.py"), "--config.seed=3", *found[4:]]
    assert found[4] == "--workdir=configs/demo.py"


@pytest.mark.parametrize("workdir", [("--workdir=runs/a",), ("--workdir", "runs/a")])
def test_without_a_config_that_of_the_workdir_is_used_where_a_command_has_it(
    workdir: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    command = ["evaluate.py", *workdir, "--config.eval.window=512"]
    assert find_configs(command, "saved.py") == ["evaluate.py", "--config=saved.py:runs/a", *command[1:]]
    assert find_configs(command) == command
    given = [*command, "--config=configs/demo.py"]
    assert find_configs(given, "saved.py") == [*command, f"--config={config_folder() / 'demo.py'}"]


def test_a_command_may_have_a_config_of_its_own_for_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    default = f"--config={config_folder() / 'custom.py'}"
    assert find_configs(["label.py", "--out=a"], default_config="configs/custom.py") == ["label.py", default, "--out=a"]
    given = ["label.py", f"--config={config_folder() / 'demo.py'}"]
    assert find_configs(given, default_config="configs/custom.py") == given
    assert has_flag("--out", ["label.py", "--out", "a"])
    assert not has_flag("--out", ["label.py", "--config.out=a"])
