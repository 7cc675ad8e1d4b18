"""How batches and the state lie on the devices.

The mesh has an axis "data". Batches are split over all devices; the state is the same on every device. With fully
sharded data parallelism, a second axis "fsdp" has the devices that share one copy of the state: each large array is
split over it, and the compiler gathers weights where a network reads them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import InputError

DATA, FSDP = "data", "fsdp"  # axes
_LEAST_SPLIT = 2**10  # elements; what is smaller is not worth a message


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all devices of all processes, each with its own copy of the state."""
    return Mesh(np.asarray(devices or jax.devices()), (DATA,))


def share_state(mesh: Mesh, fsdp: int) -> Mesh:
    """A mesh over the same devices, each `fsdp` of which share a copy of the state.

    Raises:
      InputError: `fsdp_fault`.
    """
    if fault := fsdp_fault(fsdp, mesh.size):
        raise InputError(fault)
    return mesh if fsdp == 1 else Mesh(mesh.devices.reshape(-1, fsdp), (DATA, FSDP))


def fsdp_fault(fsdp: int, devices: int) -> str | None:
    """What is wrong with a number of devices that share a copy of the state; None if it divides all devices."""
    if devices % fsdp == 0:
        return None
    fitting = ", ".join(str(count) for count in range(1, devices + 1) if devices % count == 0)
    return f"config.train.fsdp={fsdp} does not divide the {devices} device(s); set it to one of {fitting}"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the leading dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of metrics and small arrays: the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def splits_state(mesh: Mesh) -> bool:
    """Whether devices share copies of the state."""
    return FSDP in mesh.axis_names


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """The shardings of a part of the state, or of frozen weights.

    Args:
      tree: arrays or shape structs.
      mesh: the devices.

    Returns:
      A tree of `NamedSharding`. Where devices share a copy, an array's longest dimension that they divide is split over
      them; small arrays are replicated.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _state_spec(leaf.shape, mesh)), tree)


def _state_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    fitting = [axis for axis, size in enumerate(shape) if splits_state(mesh) and size % mesh.shape[FSDP] == 0]
    if not fitting or math.prod(shape) < _LEAST_SPLIT:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == longest else None for axis in range(longest + 1)))


def put_state(tree: Any, mesh: Mesh) -> Any:
    """Places a part of the state, or frozen weights, on the devices."""
    return jax.device_put(tree, state_shardings(tree, mesh))


def sharded_structs(tree: Any, mesh: Mesh) -> Any:
    """Shape structs of a part of the state, or of frozen weights, with their shardings."""
    return jax.tree.map(_struct, tree, state_shardings(tree, mesh))


def _struct(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def with_sharding(tree: Any, sharding: NamedSharding) -> Any:
    """Shape structs of a pytree of arrays or shape structs, all with this sharding."""
    return jax.tree.map(lambda leaf: _struct(leaf, sharding), tree)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Makes a global batch from the rows of each process.

    Args:
      batch: this process's rows, a pytree of numpy arrays.
      mesh: the devices.

    Returns:
      The same tree of global arrays, whose leading dimension is the sum over processes.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)


def interleave(*batches: jax.Array) -> jax.Array:
    """Joins k batches [N, ...] of equal shape into [kN, ...], image by image.

    Concatenation would move images between devices; interleaving does not. The order of images in a batch does not
    matter to a network.
    """
    joined = jnp.stack(batches, axis=1)
    return joined.reshape(-1, *joined.shape[2:])


def deinterleave(joined: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """The inverse of `interleave`: splits [kN, ...] into k batches [N, ...], k = `count`."""
    return tuple(jnp.unstack(joined.reshape(-1, count, *joined.shape[1:]), axis=1))
