"""Sliding-window inference: logits of overlapping windows of one size, averaged at each pixel.

SemiVL evaluates this way, one image at a time (google-research/semivl, `third_party/unimatch/supervised.py`, mode
"zegclip_sliding_window"). Here images of several true sizes share a batch with one padded shape, and each image has the
same windows as without padding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from semiovs_jax.models.precision import full_precision


class Windows(NamedTuple):
    """The windows of every image along one axis.

    Attributes:
      start: int32 [M, N], first pixel of each of M windows in each of N images.
      share: float [M, N, L], the window's weight in the mean of each pixel. The weights of a pixel sum to 1 inside the
        image and are 0 outside. Windows that an image does not need have weight 0.
    """

    start: jax.Array
    share: jax.Array


def windows_along(length: jax.Array, padded: int, window: int, stride: int) -> Windows:
    """Places windows along one axis: one every `stride` pixels, the last one shifted back inside the image.

    Args:
      length: int32 [N], true lengths, at least `window`.
      padded: the padded length L.
      window: length of a window, at most `padded`.
      stride: at most `window`.
    """
    count = -(-(padded - window) // stride) + 1
    unshifted = stride * jnp.arange(count, dtype=jnp.int32)[:, None]
    start = jnp.minimum(unshifted, length - window)
    needed = (unshifted == 0) | (unshifted - stride + window < length)  # the previous window ends before the image does
    pixel = jnp.arange(padded, dtype=jnp.int32)
    covers = needed[..., None] & (start[..., None] <= pixel) & (pixel < start[..., None] + window)
    return Windows(start, covers / jnp.maximum(covers.sum(0), 1))


def sliding_logits(
    predict: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    *,
    window: int,
    stride: int,
    size: jax.Array | None = None,
) -> jax.Array:
    """Mean logits of the windows that cover each pixel.

    One window of every image is computed at a time, so memory does not grow with the number of windows, and no image
    moves to another device. Windows are cut out and put back by matrix products: their positions differ by image, and
    slices at such positions would be gathers and scatters.

    Args:
      predict: the network, from images [N, h, w, C] to logits [N, h, w, K].
      image: float [N, H, W, C].
      window: side of the square windows, in pixels; an axis shorter than this has one window of the axis's length.
      stride: distance between the starts of windows, 1..`window`, in pixels.
      size: int32 [N, 2], true heights and widths, each at least `window`; an image is in the top left corner of its
        padded shape. None without padding.

    Returns:
      [N, H, W, K], in float32 or the wider type of `predict`; zero outside the true size.
    """
    n, *shape, channels = image.shape
    if size is None:
        size = jnp.broadcast_to(jnp.array(shape, jnp.int32), (n, 2))
    height, width = (min(window, length) for length in shape)
    rows = windows_along(size[:, 0], shape[0], height, stride)
    columns = windows_along(size[:, 1], shape[1], width, stride)
    logits = jax.eval_shape(
        lambda x: full_precision(predict(x)), jax.ShapeDtypeStruct((n, height, width, channels), image.dtype)
    )

    def add_row(total: jax.Array, row: Windows) -> tuple[jax.Array, None]:
        band = _cut(image, row, height, axis=1)

        def add_window(row_total: jax.Array, column: Windows) -> tuple[jax.Array, None]:
            found = full_precision(predict(_cut(band, column, width, axis=2)))
            return row_total + _put(found, column, axis=2), None

        zeros = jnp.zeros((n, height, shape[1], logits.shape[-1]), logits.dtype)
        row_total, _ = jax.lax.scan(add_window, zeros, columns)
        return total + _put(row_total, row, axis=1), None

    zeros = jnp.zeros((n, *shape, logits.shape[-1]), logits.dtype)
    total, _ = jax.lax.scan(add_row, zeros, rows)
    return total


def _cut(x: jax.Array, window: Windows, length: int, axis: int) -> jax.Array:
    """Cuts one window out of every image; `axis` of [N, H, W, C] gets `length`."""
    matrix = _places(window, length).astype(x.dtype)
    return _product("nwl,nlxc->nwxc" if axis == 1 else "nwl,nylc->nywc", matrix, x)


def _put(x: jax.Array, window: Windows, axis: int) -> jax.Array:
    """Puts a window back at its position, weighted by its shares; zero elsewhere."""
    matrix = (_places(window, x.shape[axis]) * window.share[:, None]).astype(x.dtype)
    return _product("nwl,nwxc->nlxc" if axis == 1 else "nwl,nywc->nylc", matrix, x)


def _places(window: Windows, length: int) -> jax.Array:
    """Maps pixels of the window to pixels of the image, bool [N, length, L]."""
    pixel = jnp.arange(window.share.shape[-1], dtype=jnp.int32)
    return window.start[:, None, None] + jnp.arange(length, dtype=jnp.int32)[:, None] == pixel


def _product(subscripts: str, matrix: jax.Array, x: jax.Array) -> jax.Array:
    # The default for float32 on TPUs is a single bfloat16 pass, which would round pixels and logits.
    return jnp.einsum(subscripts, matrix, x, precision=jax.lax.Precision.HIGHEST)
