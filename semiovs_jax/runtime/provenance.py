"""Where a result comes from: the config, the versions of the packages, the revision of the code, the devices."""

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import ml_collections

_PACKAGES = ("semiovs-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_CHECKOUT = Path(__file__).parents[2]
_SOURCES = ("semiovs_jax", "data_pipelines")


def config_as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as JSON keeps it: tuples become lists."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def config_sha256(config: dict[str, Any]) -> str:
    """Hex SHA-256 of a config of `config_as_json`."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers of a run."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout that was never installed
            versions[name] = "not installed"
    return versions


def code_sha256() -> str:
    """Hex SHA-256 of the source files of this project's packages, whether they are committed or not."""
    digest = hashlib.sha256()
    for package in _SOURCES:
        for path in sorted((_CHECKOUT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(_CHECKOUT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, with "-dirty" if files differ; None outside of one."""
    if not (_CHECKOUT / ".git").exists():
        return None
    command = ("git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def device_facts() -> dict[str, Any]:
    """Kind and number of all devices, and the number of processes."""
    import jax  # here: a config of a run is read without it

    devices = jax.devices()
    return {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()}
