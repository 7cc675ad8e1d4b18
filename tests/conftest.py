"""Runs every test on the CPU, with eight fake devices so that arrays are really sharded."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from semiovs_jax.runtime.command import CPU_FLAGS
from tests.compilation import FAST_COMPILATION
from tests.object_storage import serve

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Goldens of whole models are replayed with the flags that users get, see `test_replay`.
os.environ.setdefault("XLA_FLAGS", f"{CPU_FLAGS} --xla_force_host_platform_device_count=8 {FAST_COMPILATION}")

# Runs of the same config compile the same programs. Workers and subprocesses share the folder, of short ones, too.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="semiovs_jax_tests_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache

# A cache of text embeddings apart from the user's.
embeddings = tempfile.mkdtemp(prefix="semiovs_jax_tests_")
atexit.register(shutil.rmtree, embeddings, ignore_errors=True)
os.environ["SEMIOVS_CACHE"] = embeddings


@pytest.fixture(scope="session")
def google() -> Iterator[str]:
    """URL of a bucket of Google Cloud Storage on this machine."""
    with serve("gs") as url:
        yield url


@pytest.fixture(scope="session")
def amazon() -> Iterator[str]:
    """URL of a bucket of S3 on this machine; clients keep its address, so that there is one for all tests."""
    with serve("s3") as url:
        yield url


@pytest.fixture(scope="session", params=["google", "amazon"], ids=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> str:
    """URL of a bucket on this machine, one of each kind."""
    return request.getfixturevalue(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts files with slow tests first, so that no worker starts one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
