"""Tables of compiled steps: what is compiled, what is kept, and the times that follow."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from semiovs_jax.runtime import hlo, pods
from semiovs_jax.runtime.ahead import Report
from semiovs_jax.runtime.config_files import published_rows

KIND = "TPU v5 lite"  # v5e: 197e12 FLOPs, 819e9 bytes of memory and 200e9 bytes of links a second


def report(devices: int = 8, *reduced: int, kind: str = KIND) -> Report:
    """Of a step with 1.97 TFLOPs, 10 ms, and all-reduces of so many bytes."""
    return Report(
        seconds=12.4,
        devices=devices,
        device_kind=kind,
        parameters=0,
        images=3 * devices,
        arguments=2**30,
        outputs=0,
        temporaries=2**29,
        donated=0,
        code=0,
        total=3 * 2**29,
        flops=1.97e12,
        counted=1.9e12,
        bytes_accessed=1e9,
        collectives=tuple(hlo.Collective("all-reduce", size, "") for size in reduced),
        faults=(),
    )


@pytest.mark.parametrize(("topology", "chips"), [("v5e:2x4", 8), ("v5p:2x2x1", 4), ("cpu:8", 8)])
def test_chips_of_a_topology(topology: str, chips: int):
    assert pods.chips_of(topology) == chips


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:2xfour"])
def test_a_topology_without_a_number_is_refused(topology: str, tmp_path: Path):
    with pytest.raises(InputError, match="expected one such as v5e:2x4"):
        pods.compile_rows(["configs/demo.py"], [topology], [], tmp_path)


class Compiler:
    """Stands in for the processes that compile: fails for one config, and reports for the others."""

    def __init__(self, failing: str = "none of them"):
        self.failing = failing
        self.flags: list[list[str]] = []

    def run(self, command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        *flags, json_flag = command[3:]
        self.flags.append(flags)
        if any(self.failing in flag for flag in flags):
            return subprocess.CompletedProcess(command, 2, "", "a warning\nerror: it does not fit\n")
        file = Path(json_flag.removeprefix("--json="))
        pods.write_report(report(8, 2**20, 2**20), flags, file)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_rows_are_compiled_once_and_what_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    configs, changes = ["configs/voc.py:92,unimatch", "configs/voc.py:92,semivl"], ["--config.model.dtype=bfloat16"]
    compiler = Compiler(failing="semivl")
    monkeypatch.setattr(pods.subprocess, "run", compiler.run)
    rows = pods.compile_rows(configs, ["v5e:2x4", "v5e:4x4"], changes, tmp_path / "reports")
    assert [row.batch_size for row in rows] == [8, 8, 16, 16]  # published: 8 and 4
    assert compiler.flags[0] == [
        "--config=configs/voc.py:92,unimatch", "--topology=v5e:2x4", *changes, "--config.batch_size=8"
    ]  # fmt: skip
    lines = pods.format_rows(rows).splitlines()
    assert lines[2].split(" | ") == [
        "| configs/voc.py:92,unimatch, v5e:2x4", "3", "1.50", "1,970 (1,900)", "1.0", "2, 2", "10.0 to 10.0",
        "10.0 to 10.1", "100% to 100%", "12 |",
    ]  # fmt: skip
    assert lines[4:] == [f"configs/voc.py:92,semivl, {name}: it does not fit" for name in ("v5e:2x4", "v5e:4x4")]

    again = Compiler()
    monkeypatch.setattr(pods.subprocess, "run", again.run)
    mended = pods.compile_rows(configs, ["v5e:2x4", "v5e:4x4"], changes, tmp_path / "reports")
    assert len(again.flags) == 2
    assert [row.fault for row in mended] == [""] * 4
    pods.compile_rows(configs[:1], ["v5e:2x4"], [], tmp_path / "reports")
    assert len(again.flags) == 3, "other flags, another report"


def test_every_method_of_every_published_file_is_a_row():
    rows = published_rows()
    assert "configs/voc.py:92,semivl" in rows
    assert "configs/context.py:1_32,prevmatch" in rows
    assert len(rows) == 4 + 3


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "semiovs_jax.compile", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_report_in_a_file(tmp_path: Path):
    flags = [
        "--config=configs/demo.py",
        "--topology=cpu:1",
        "--config.method.name=supervised",
        "--config.method.ood=none",
    ]
    done = run(*flags, f"--json={tmp_path / 'report.json'}")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["flags"] == flags
    found = pods.read_report(content["report"])
    assert (found.devices, found.images, found.faults) == (1, 8, ())
    assert found.total > found.parameters > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--all", "--config=configs/demo.py"], "leave out --config"),
        (["--all", "--config.model.dtipe=bfloat16"], "config.model.dtipe"),
        (["--config=configs/demo.py", "--topology=cpu:1", "--topology=cpu:2"], "several need --all"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], message: str):
    done = run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
