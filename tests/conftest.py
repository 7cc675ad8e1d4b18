"""Every test runs on the CPU, on eight fake devices so that sharding is real."""

import atexit
import os
import shutil
import tempfile

import pytest

from semiovs_jax.runtime.command import CPU_FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, and of that LLVM's optimization a third.
os.environ.setdefault(
    "XLA_FLAGS", f"{CPU_FLAGS} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

# Runs of one config compile the same programs. Workers and subprocesses inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="semiovs_jax_tests_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache

# The user's cache of text embeddings is not touched.
embeddings = tempfile.mkdtemp(prefix="semiovs_jax_tests_")
atexit.register(shutil.rmtree, embeddings, ignore_errors=True)
os.environ["SEMIOVS_CACHE"] = embeddings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
