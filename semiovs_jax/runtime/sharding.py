"""The mesh: one axis "data"; batches are split over it, the state is replicated."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices`, by default every device of every process."""
    return Mesh(np.asarray(devices or jax.devices()), ("data",))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading dimension split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def with_sharding(tree: Any, sharding: NamedSharding) -> Any:
    """Shape structs of a pytree's arrays or structs, all with this sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's share of a batch, a pytree of numpy arrays, onto its devices.

    Returns:
      The same tree of global arrays, whose leading dimension is the sum over processes.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)


def interleave(*batches: jax.Array) -> jax.Array:
    """Joins k equal batches [N, ...] into [kN, ...], image by image.

    Concatenation would move images between devices; interleaving keeps each where it is, and nothing a network
    computes over a batch depends on the order.
    """
    joined = jax.numpy.stack(batches, axis=1)
    return joined.reshape(-1, *joined.shape[2:])


def deinterleave(joined: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """Undoes `interleave`: [kN, ...] into k batches [N, ...], k = `count`."""
    parts = joined.reshape(-1, count, *joined.shape[1:])
    return tuple(parts[:, i] for i in range(count))
