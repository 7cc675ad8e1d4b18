"""The device mesh with one axis, "data": batches are split over it, the state is replicated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices`, by default all devices of all processes."""
    return Mesh(np.asarray(devices or jax.devices()), ("data",))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the leading dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def with_sharding(tree: Any, sharding: NamedSharding) -> Any:
    """Shape structs of a pytree of arrays or shape structs, all with this sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


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
