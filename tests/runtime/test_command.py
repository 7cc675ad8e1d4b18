import os
import platform
import subprocess
import sys
from unittest import mock

import pytest

from semiovs_jax.runtime import command as runtime

# Prints the page faults of 2 MiB arrays that come and go.
FAULTS = """
import resource
import numpy as np
from semiovs_jax.runtime.command import tune_process

if TUNED:
    tune_process()
kept = [np.ones(2**21, np.uint8) for _ in range(4)]
del kept
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    arrays = [np.ones(2**21, np.uint8) for _ in range(4)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(tuned: bool, **environment: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", f"TUNED = {tuned}\n{FAULTS}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=inherited | environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's")
def test_freed_memory_is_kept_here_and_in_processes_started_from_here():
    with mock.patch.dict(os.environ):  # what is set here does not outlast the test
        for name in runtime._MALLOC_SETTINGS:
            os.environ.pop(name, None)
        runtime.tune_process()
        inherited = {name: os.environ[name] for name in runtime._MALLOC_SETTINGS}
    few = 1000  # 50 times 4 arrays have 102,400 pages; untuned, most of them fault where pages are not huge
    assert page_faults(tuned=True) < few
    assert page_faults(tuned=False, **inherited) < few


def test_settings_of_the_environment_are_left_alone(monkeypatch):
    chosen = dict.fromkeys(("XLA_FLAGS", *runtime._MALLOC_SETTINGS), "123456")
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    runtime.tune_process()
    assert {name: os.environ[name] for name in chosen} == chosen
