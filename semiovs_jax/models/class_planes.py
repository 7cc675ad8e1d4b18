"""Feature maps of every class, [N, T, h, w, C], computed a few classes at a time.

A plane is the feature map [h, w, C] of one class. Axis 1 indexes class slots. After pruning, the active classes come
first; the remaining slots hold garbage.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from semiovs_jax.models.layers import resize_bilinear


def per_class(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Applies a layer of images [M, h, w, C] to every plane of x [N, T, h, w, C]."""
    y = layer(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def pool(x: jax.Array, size: int) -> jax.Array:
    """Average pooling of x [N, T, h, w, C] by `size`; the remainder at the end is dropped, as in torch."""
    if size == 1:
        return x
    n, t, h, w, c = x.shape
    h, w = h // size, w // size
    return x[:, :, : h * size, : w * size].reshape(n, t, h, size, w, size, c).mean((3, 5))


def unpool(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bilinear interpolation of planes [N, T, h, w, C] to `shape`, with aligned corners."""
    if x.shape[2:4] == shape:
        return x
    return per_class(lambda y: resize_bilinear(y, (shape[0], shape[1]), align_corners=True), x)


def by_chunks(
    function: Callable[[Any], tuple[Any, Any]], inputs: Any, size: int, chunks: int | jax.Array, into: Any = None
) -> tuple[Any, Any]:
    """Calls `function` on `size` class slots at a time.

    Args:
      function: maps arrays [N, size, ...] to outputs [N, size, ...] and to sums over the slots.
      inputs: arrays [N, T, ...], T a multiple of `size`.
      size: slots per call.
      chunks: number of calls, for the first slots; if traced, reverse-mode differentiation is impossible.
      into: arrays [N, T, ...] that the outputs overwrite; zeros if None.

    Returns:
      The outputs of all slots [N, T, ...] (the values of `into` where there was no call), and the sums over all calls.
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


class ClassSlots(NamedTuple):
    """The assignment of classes to slots, per image.

    Attributes:
      classes: int32 [N, T], the class of each slot.
      num_active: int32 [N], number of active slots; they come first.
    """

    classes: jax.Array
    num_active: jax.Array

    @property
    def active(self) -> jax.Array:
        """Mask of the active slots, bool [N, T]."""
        return jnp.arange(self.classes.shape[1]) < self.num_active[:, None]

    @classmethod
    def all(cls, images: int, slots: int, classes: int) -> "ClassSlots":
        """Class i in slot i, in every image; slots beyond the classes are inactive."""
        return cls(jnp.broadcast_to(jnp.arange(slots), (images, slots)), jnp.full(images, classes))

    def prune(self, logits: jax.Array, top_k: int, planes: Any) -> tuple[Any, "ClassSlots"]:
        """Keeps the classes that are among the `top_k` best of at least one pixel, and moves them to the front.

        Args:
          logits: float [N, T, h, w], ranks the classes of a pixel.
          top_k: number of classes that each pixel keeps.
          planes: arrays [N, T, ...], reordered like the classes.

        Returns:
          The reordered planes and the new assignment.
        """
        logits = jnp.where(self.active[..., None, None], logits, -jnp.inf)
        best, _ = jax.lax.top_k(jnp.moveaxis(logits, 1, -1), min(top_k, logits.shape[1]))
        kept = jnp.any(logits >= best[..., -1][:, None], axis=(2, 3)) & self.active
        order = jnp.argsort(~kept, axis=1, stable=True)
        take = jax.vmap(lambda x, index: x[index])
        moved, classes = jax.tree.map(lambda x: take(x, order), (planes, self.classes))
        return moved, ClassSlots(classes, jnp.sum(kept, axis=1))

    def in_class_order(self, logits: jax.Array) -> jax.Array:
        """Reorders logits [N, T, H, W] by class; classes without an active slot get -inf."""
        logits = jnp.where(self.active[..., None, None], logits, -jnp.inf)
        return jax.vmap(lambda x, index: jnp.full_like(x, -jnp.inf).at[index].set(x))(logits, self.classes)
