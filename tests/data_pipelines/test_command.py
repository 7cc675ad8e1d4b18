import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_COMMAND = """
import os, sys
from data_pipelines.command import command_end
with command_end():
    {body}
"""
_MANY = "[print('x' * 100) for _ in range(10_000)]"


def _run_for_a_closed_reader(body: str) -> tuple[int, str]:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND.format(body=body)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    message = process.communicate()[1]
    return process.returncode, message


@pytest.mark.parametrize("body", [_MANY, "print('one line')", "print('usage'); sys.exit(0)"])
def test_a_command_whose_reader_has_gone_ends_without_a_message(body: str):
    assert _run_for_a_closed_reader(body) == (141, "")


def test_the_status_of_a_failure_is_kept():
    assert _run_for_a_closed_reader("print('a fault'); sys.exit(1)") == (1, "")


def test_another_broken_pipe_is_an_error_with_its_traceback():
    broken = "import os; reader, writer = os.pipe(); os.close(reader); os.write(writer, b'x')"
    command = [sys.executable, "-c", _COMMAND.format(body=broken)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr
