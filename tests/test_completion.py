"""Words that complete a command line of `semiovs`, as the completion function of bash gives them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import demo
from semiovs_jax.__main__ import find_commands
from semiovs_jax.runtime.config_keys import flat
from semiovs_jax.runtime.provenance import config_as_json
from semiovs_jax.weights.published import load_published
from tests.test_command_line import ROOT, SCRIPT

MINE = """
from configs import demo

def get_config():
    config = demo.get_config().unlock()
    config.method.mine = 3
    return config.lock()
"""

# Calls the completion function as bash does when Tab is pressed at the end of a line.
ASK = r"""
eval "$(semiovs completion bash)"
function_name=$(complete -p semiovs | sed 's/.*-F \([^ ]*\) .*/\1/')
while IFS= read -r line; do
    words=($line); [[ $line == *" " ]] && words+=("")
    COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
    COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
    COMPREPLY=()
    $function_name semiovs "${words[-1]}" "${words[-2]}"
    printf '%s\t' "${COMPREPLY[@]}"; echo
done
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the lines are completed: a config file, and a run."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "semiovs").write_text(
        f"#!{sys.executable}" + SCRIPT.format(module="semiovs_jax.__main__", function="main")
    )
    (folder / "semiovs").chmod(0o755)
    (folder / "mine.py").write_text(MINE)
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "config.json").write_text(json.dumps(config_as_json(demo.get_config())))
    return folder


def complete(folder: Path, *lines: str) -> list[list[str]]:
    """The words for each line."""
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    asked = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        ["bash", "-c", ASK], input=asked, env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return [[word.strip() for word in line.split("\t") if word] for line in done.stdout.splitlines()]


def test_commands_flags_and_choices_are_completed(folder: Path):
    lines = {
        "semiovs ev": ["evaluate"],
        "semiovs evaluate --wh": ["--which="],
        "semiovs evaluate --which=": ["best", "latest"],
        "semiovs evaluate --which=l": ["latest"],
        "semiovs predict --fl": ["--flip"],
        "semiovs compare --o": ["--out="],
        "semiovs fetch resnet10": sorted(name for name in load_published() if name.startswith("resnet10")),
        "semiovs completion ": ["bash", "zsh"],
        "semiovs train --workdir=r": ["runs/"],
    }
    commands, *found = complete(folder, "semiovs ", *lines)
    assert set(commands) >= set(find_commands())
    assert [sorted({*words} - {"--help"}) for words in found] == list(lines.values())


def test_config_files_and_keys_are_completed(folder: Path):
    files, mine, keys, own, value, of_run, switch = complete(
        folder,
        "semiovs train --config=configs/vo",
        "semiovs train --config=m",
        "semiovs train --config=configs/demo.py --config.optim.",
        "semiovs train --config=mine.py --config.method.m",
        "semiovs train --config=configs/demo.py --config.data.crop_size=",
        "semiovs evaluate --workdir=runs/a --config.eval.s",
        "semiovs evaluate --workdir=runs/a --config.eval.flip=",
    )
    assert files == ["configs/voc.py", "configs/voc92.py"]
    assert mine == ["mine.py"]
    assert sorted(keys) == [f"--config.optim.{key}=" for key, _ in flat(demo.get_config().optim)]
    assert own == [
        "--config.method.maskclip.weight=",
        "--config.method.maskclip.confidence_threshold=",
        "--config.method.mine=",
    ]
    assert value == ["65"]
    assert of_run == ["--config.eval.short_side=", "--config.eval.stride=", "--config.eval.scales="]
    assert switch == ["true", "false"]


@pytest.mark.parametrize("command", sorted(find_commands()))
def test_every_command_is_completed_without_jax(command: str, folder: Path, tmp_path: Path):
    line = f"semiovs {command} --"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"), "COMP_LINE": line}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_POINT": str(len(line)), **asked}
    command_line = [sys.executable, "-X", "importtime", folder / "semiovs"]
    done = subprocess.run(command_line, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--" in (tmp_path / "words").read_text()
    assert not {"jax", "flax"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
