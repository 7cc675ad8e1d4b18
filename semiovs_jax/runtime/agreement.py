"""Checks that the processes of a run were started alike."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax._src.distributed import global_state  # the client of JAX's coordination service has no public name
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError
from semiovs_jax.runtime.config_keys import flat
from semiovs_jax.runtime.provenance import code_sha256, config_as_json, package_versions

# Config keys that may differ: they change how fast a host reads, and no number.
PER_HOST = frozenset({"data.num_threads", "data.num_workers", "data.prefetch", "data.stall_seconds"})

_FACTS = "semiovs_jax/facts"  # keys of the coordination service
_SECONDS = 300.0
_LISTED = 10  # differences
_REMEDY = (
    "start all processes with the same command, of the same checkout, with the same packages and the same number of "
    "devices"
)


def check_agreement(config: ml_collections.ConfigDict) -> None:
    """Checks that all processes have the same config, code, packages and number of devices; every process must call it.

    Processes that differ in these compile different programs, and then wait for each other for ever.

    Args:
      config: the config of this process.

    Raises:
      InputError: raised on all processes, with what differs from process 0.
    """
    _compare("start", _facts_of_start(config))
    # The devices last: other versions of JAX need not open them in the same way.
    _compare("devices", {"number of devices": jax.local_device_count(), "device": jax.local_devices()[0].device_kind})
    # On the CPU, the first collective connects the processes, and fails if one comes half a minute later.
    multihost_utils.sync_global_devices("the processes agree")


def _facts_of_start(config: ml_collections.ConfigDict) -> dict[str, Any]:
    values = {key: value for key, value in flat(config_as_json(config)) if key not in PER_HOST}
    return {
        "--process_count": global_state.num_processes,
        **{f"version of {name}": version for name, version in package_versions().items()},
        "SHA-256 of the code": code_sha256()[:12],
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""),
        **{f"config.{key}": value for key, value in values.items()},
    }


def _compare(what: str, facts: Mapping[str, Any]) -> None:
    client: Any = global_state.client
    folder = f"{_FACTS}/{what}/"
    client.key_value_set(f"{folder}{global_state.process_id}", json.dumps(facts))
    client.wait_at_barrier(folder, int(1000 * _SECONDS))
    found = {int(key.removeprefix(folder)): json.loads(value) for key, value in client.key_value_dir_get(folder)}
    if faults := differences([found[index] for index in sorted(found)]):
        more = [f"and {len(faults) - _LISTED} more"] * (len(faults) > _LISTED)
        raise InputError("\n  ".join(("the processes differ:", *faults[:_LISTED], *more, _REMEDY)))


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each fact that is not the same on all processes.

    Args:
      facts: JSON values by name, of each process.
    """
    lines = []
    for name in dict.fromkeys(name for own in facts for name in own):
        by_value: dict[str, list[int]] = {}
        for index, own in enumerate(facts):
            by_value.setdefault(repr(own[name]) if name in own else "missing", []).append(index)
        if len(by_value) > 1:
            lines.append(f"{name} is " + ", ".join(f"{value} on {_named(by_value[value])}" for value in by_value))
    return lines


def _named(processes: Sequence[int]) -> str:
    return f"process{'es' * (len(processes) > 1)} {', '.join(map(str, processes))}"
