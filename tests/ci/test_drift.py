"""The table of versions and results that .ci/drift prints, with other programs in the place of Python and pip."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Makes an environment whose python is this script, too.
PYTHON = r"""#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-c "*) echo 3.12 ;;
  *--report=-*)
    echo '{"install": [{"metadata": {"name": "jax", "version": "9.9"}}, ' \
      '{"metadata": {"name": "numpy", "version": "2.99"}}]}' ;;
  *"pip"*list*)
    echo '[{"name": "jax", "version": "9.8"}, {"name": "numpy", "version": "2.99"}, {"name": "pip", "version": "1"}' \
      ', {"name": "ml_dtypes", "version": "0.99"}]' ;;
  "-m pytest "*)
    for argument; do case $argument in --junitxml=*) cat > "${argument#--junitxml=}" << 'XML'
<testsuites><testsuite><testcase classname="tests.test_a" name="test_b"><failure/></testcase>
<testcase classname="tests.test_a" name="test_c"/><testcase classname="tests.test_a" name="test_d"><skipped/></testcase>
</testsuite></testsuites>
XML
    esac; done
    [ -z "$PAUSE" ] || exec sleep 60
    exit 1 ;;
esac
"""


def _start(tmp_path: Path, **environment: str) -> tuple[subprocess.Popen[str], Path]:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls.touch()
    started = subprocess.Popen(
        (sys.executable, ROOT / ".ci" / "drift", python, "tests/test_losses.py"),
        env=os.environ | {"CALLS": str(calls), "PAUSE": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return started, calls


def _environment(calls: Path) -> Path:
    return Path(next(call for call in calls.read_text().splitlines() if call.startswith("-m venv")).split()[-1])


def test_the_table_names_what_drifts_and_what_fails(tmp_path: Path):
    started, path = _start(tmp_path)
    stdout, stderr = started.communicate(timeout=60)
    assert started.returncode == 1, stderr
    locked = dict(
        line.split(" ")[0].split("==")
        for line in (ROOT / "requirements" / "python3.12.txt").read_text().splitlines()
        if line.startswith(("jax==", "numpy==", "ml-dtypes=="))
    )
    assert stdout.splitlines()[1:] == [
        "## Python 3.12, requirements/python3.12.txt",
        "",
        "| package | locked | tested | newest |",
        "|---|---|---|---|",
        f"| jax | {locked['jax']} | 9.8 | 9.9, not allowed |",
        f"| ml-dtypes | {locked['ml-dtypes']} | 0.99 |  |",
        f"| numpy | {locked['numpy']} | 2.99 |  |",
        "",
        "1 passed, 1 failed, 1 skipped",
        "- tests.test_a::test_b",
    ]
    calls = path.read_text().splitlines()
    assert any(call.endswith("install -q --upgrade -e .[test]") for call in calls)
    assert calls[-1].endswith("tests/test_losses.py")
    assert next(call for call in calls if "--report=-" in call).endswith("--report=- jax numpy")
    assert not _environment(path).exists()


def test_a_stopped_run_leaves_neither_a_process_nor_an_environment(tmp_path: Path):
    started, calls = _start(tmp_path, PAUSE="1")
    while "-m pytest" not in calls.read_text():
        assert started.poll() is None
        time.sleep(0.05)
    made = _environment(calls)
    assert made.exists()
    started.terminate()
    started.communicate(timeout=30)  # ends when no process has its output any more
    assert started.returncode == 143
    assert not made.exists()
