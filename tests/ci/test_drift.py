"""The table of versions and results that .ci/drift prints, with other programs in the place of Python and pip."""

import os
import subprocess
import sys
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
    exit 1 ;;
esac
"""


def test_the_table_names_what_drifts_and_what_fails(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    ended = subprocess.run(
        (sys.executable, ROOT / ".ci" / "drift", python, "tests/test_losses.py"),
        env=os.environ | {"CALLS": str(tmp_path / "calls")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1, ended.stderr
    locked = dict(
        line.split(" ")[0].split("==")
        for line in (ROOT / "requirements" / "python3.12.txt").read_text().splitlines()
        if line.startswith(("jax==", "numpy==", "ml-dtypes=="))
    )
    assert ended.stdout.splitlines()[1:] == [
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
    calls = (tmp_path / "calls").read_text().splitlines()
    assert any(call.endswith("install -q --upgrade -e .[test]") for call in calls)
    assert calls[-1].endswith("tests/test_losses.py")
    assert next(call for call in calls if "--report=-" in call).endswith("--report=- jax numpy")
    made = next(call for call in calls if call.startswith("-m venv")).split()[-1]
    assert not Path(made).exists()
