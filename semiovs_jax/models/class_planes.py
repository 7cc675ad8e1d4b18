"""Arrays with a plane of features per class, [N, T, h, w, C], computed a few classes at a time.

The second axis holds places; where classes are pruned, those in use lie in front and the others mean nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from semiovs_jax.models.layers import resize_bilinear


def per_class(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Calls a layer of images [M, h, w, C] on every plane of x [N, T, h, w, C]."""
    y = layer(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def pool(x: jax.Array, size: int) -> jax.Array:
    """Means of `size` x `size` pixels of x [N, T, h, w, C]; what is left over at the end is dropped, as in torch."""
    if size == 1:
        return x
    n, t, h, w, c = x.shape
    h, w = h // size, w // size
    return x[:, :, : h * size, : w * size].reshape(n, t, h, size, w, size, c).mean((3, 5))


def unpool(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Planes [N, T, h, w, C] resized to `shape`, corners aligned."""
    if x.shape[2:4] == shape:
        return x
    return per_class(lambda y: resize_bilinear(y, (shape[0], shape[1]), align_corners=True), x)


def by_chunks(
    function: Callable[[Any], tuple[Any, Any]], inputs: Any, size: int, chunks: int | jax.Array, into: Any = None
) -> tuple[Any, Any]:
    """Calls `function` on `size` places at a time.

    Args:
      function: from arrays [N, size, ...] to outputs [N, size, ...] and to sums over the places.
      inputs: arrays [N, T, ...], T a multiple of `size`.
      size: places of a call.
      chunks: how many calls; if traced, not differentiable in reverse.
      into: arrays [N, T, ...] that the outputs overwrite; zeros if None.

    Returns:
      The outputs of all places [N, T, ...] (those of `into` where there was no call), and the sums added up.
    """
    total = jax.tree.leaves(inputs)[0].shape[1]
    if size == total:
        return function(inputs)

    def chunk(i: int | jax.Array) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1), inputs)

    outputs, sums = jax.eval_shape(function, chunk(0))
    if into is None:
        into = jax.tree.map(lambda x: jnp.zeros((x.shape[0], total, *x.shape[2:]), x.dtype), outputs)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        new, parts = function(chunk(i))
        put = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, i * size, axis=1)  # noqa: E731
        return jax.tree.map(put, carry[0], new), jax.tree.map(jnp.add, carry[1], parts)

    return jax.lax.fori_loop(0, chunks, body, (into, sums))


class Places(NamedTuple):
    """Which class lies where.

    Attributes:
      classes: int32 [N, T], the class of each place.
      used: int32 [N], how many places are in use: the first.
    """

    classes: jax.Array
    used: jax.Array

    @property
    def in_use(self) -> jax.Array:
        """Whether a place is in use, bool [N, T]."""
        return jnp.arange(self.classes.shape[1]) < self.used[:, None]

    @classmethod
    def all(cls, images: int, places: int, classes: int) -> "Places":
        """Every class at its own place, in every image; places beyond the classes are not in use."""
        return cls(jnp.broadcast_to(jnp.arange(places), (images, places)), jnp.full(images, classes))

    def prune(self, logits: jax.Array, top_k: int, planes: Any) -> tuple[Any, "Places"]:
        """Keeps the classes that are among the best `top_k` of some pixel, and moves them to the front.

        Args:
          logits: float [N, T, h, w], what the choice is made by.
          top_k: how many classes a pixel keeps.
          planes: arrays [N, T, ...], moved along.
        """
        logits = jnp.where(self.in_use[..., None, None], logits, -jnp.inf)
        best, _ = jax.lax.top_k(jnp.moveaxis(logits, 1, -1), min(top_k, logits.shape[1]))
        kept = jnp.any(logits >= best[..., -1][:, None], axis=(2, 3)) & self.in_use
        order = jnp.argsort(~kept, axis=1, stable=True)
        take = jax.vmap(lambda x, index: x[index])
        moved, classes = jax.tree.map(lambda x: take(x, order), (planes, self.classes))
        return moved, Places(classes, jnp.sum(kept, axis=1))

    def in_class_order(self, logits: jax.Array) -> jax.Array:
        """Logits [N, T, H, W] of places to those of classes; classes without a place in use get -inf."""
        logits = jnp.where(self.in_use[..., None, None], logits, -jnp.inf)
        return jax.vmap(lambda x, index: jnp.full_like(x, -jnp.inf).at[index].set(x))(logits, self.classes)
