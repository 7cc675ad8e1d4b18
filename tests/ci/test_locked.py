"""What .ci/locked installs and tests, with another program in the place of Python."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Makes an environment whose python is this script, too.
PYTHON = r"""#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  "-c "*) echo "$VERSION" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pytest "*) exit 1 ;;
esac
"""


def _run(tmp_path: Path, version: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    ended = subprocess.run(
        (ROOT / ".ci" / "locked", python, "tests/test_losses.py"),
        env=os.environ | {"CALLS": str(calls), "VERSION": version},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended, calls.read_text().splitlines()


def test_the_lock_file_of_that_python_is_installed_and_the_fast_tests_decide(tmp_path: Path):
    ended, calls = _run(tmp_path, "3.13")
    assert ended.returncode == 1, ended.stderr
    installs = [call for call in calls if " install " in call]
    assert installs[0].endswith("--require-hashes -r requirements/python3.13.txt")
    assert installs[1].endswith("--no-deps -e .")
    assert calls[-1] == "-m pytest -n 2 -m not slow tests/test_losses.py"
    made = next(call for call in calls if call.startswith("-m venv")).split()[-1]
    assert not Path(made).exists()


def test_a_python_without_a_lock_file_is_refused_before_anything_is_installed(tmp_path: Path):
    ended, calls = _run(tmp_path, "3.9")
    assert ended.returncode == 2
    assert ended.stderr.startswith("requirements/python3.9.txt: missing; there are requirements/python3.11.txt ")
    assert len(calls) == 1
