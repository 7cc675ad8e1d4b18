"""Layers with PyTorch's semantics: symmetric padding, bilinear interpolation.

Arrays are NHWC. An argument `size` gives the true heights and widths (int32 [N, 2]) of images in the top left corner
of a padded batch. Layers keep zeros outside the true area. So a convolution sees the same zeros beyond the true border
as it does for the unpadded image.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.convolution import convolve
from semiovs_jax.models.initializers import variance_scaling
from semiovs_jax.models.normalization import BatchNorm, relu
from semiovs_jax.runtime.sharding import deinterleave, interleave

# The initializers of the reference: He et al. 2015 for the backbone, torch's Conv2d default for the rest.
backbone_init = variance_scaling(2.0, "fan_out", "normal")
head_init = variance_scaling(1 / 3, "fan_in", "uniform")


def strided_size(size: jax.Array | None, stride: int) -> jax.Array | None:
    """True sizes after a layer of this stride whose padding keeps the size at stride 1."""
    return None if size is None else (size + stride - 1) // stride


def inside(size: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Bool mask [N, *shape], True on the true area of each image."""
    rows = jnp.arange(shape[0]) < size[:, :1]
    columns = jnp.arange(shape[1]) < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def zero_outside(x: jax.Array, size: jax.Array | None) -> jax.Array:
    """Sets x [N, H, W, C] to zero outside the true area; without a size, returns x."""
    if size is None:
        return x
    _, height, width, _ = x.shape
    return jnp.where(inside(size, (height, width))[..., None], x, 0)


def masked_variants(x: jax.Array, masks: jax.Array) -> jax.Array:
    """Multiplies the channels of x [N, h, w, C] by each of the masks [m, N, C].

    Returns:
      m variants of every image, interleaved: [m N, h, w, C], in the dtype of x.
    """
    return interleave(*(x * mask[:, None, None, :] for mask in masks.astype(x.dtype)))


def split_variants(logits: jax.Array, count: int) -> jax.Array:
    """Sorts the interleaved logits [m N, H, W, K] of m = `count` variants into [m, N, H, W, K]."""
    return jnp.stack(deinterleave(logits, count))


class ConvNorm(nnx.Module):
    """Convolution without bias, batch normalization and, by default, ReLU.

    Pads symmetrically by dilation * (kernel // 2), as torch does. "SAME" padding is asymmetric for a stride of 2 and an
    even size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        init: nnx.Initializer = head_init,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        padding = dilation * (kernel // 2)
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel, kernel),
            strides=stride,
            padding=((padding, padding), (padding, padding)),
            kernel_dilation=dilation,
            use_bias=False,
            kernel_init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(out_channels)
        self.stride = stride
        self.dilation = dilation
        self.relu = relu

    def __call__(self, x: jax.Array, size: jax.Array | None = None) -> jax.Array:
        """Maps x [N, H, W, in] to [N, ceil(H / stride), ceil(W / stride), out]; `size` is that of x."""
        dtype = self.conv.dtype or jnp.promote_types(x.dtype, self.conv.kernel[...].dtype)
        kernel = self.conv.kernel[...].astype(dtype)
        y = self.norm(convolve(x.astype(dtype), kernel, stride=self.stride, dilation=self.dilation))
        y = relu(y) if self.relu else y
        return zero_outside(y, strided_size(size, self.stride))


def interpolation_matrix(
    source: int | jax.Array,
    target: int | jax.Array,
    shape: tuple[int, int],
    *,
    align_corners: bool,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Weights of linear interpolation along one axis, for static or traced lengths.

    Positions are fractions of integers: no rounding error moves a sample to a neighboring cell.

    Args:
      source: True length of the input: an int, or int32 [N].
      target: True length of the output: an int, or int32 [N].
      shape: Padded lengths (output, input) of the matrix.
      align_corners: As in torch.nn.functional.interpolate: whether the first and last samples of input and output
        coincide (True), or the outer edges of their pixels do (False).
      dtype: Dtype of the weights.

    Returns:
      [output, input], or [N, output, input] if a length is traced. Rows from `target` on are zero.
    """
    source = jnp.asarray(source, jnp.int32)[..., None]
    target = jnp.asarray(target, jnp.int32)[..., None]
    i = jnp.arange(shape[0], dtype=jnp.int32)
    if align_corners:
        numerator, denominator = i * (source - 1), jnp.maximum(target - 1, 1)
    else:
        numerator, denominator = jnp.maximum((2 * i + 1) * source - target, 0), 2 * target
    low = numerator // denominator
    fraction = (numerator - low * denominator).astype(dtype) / denominator.astype(dtype)
    high = jnp.minimum(low + 1, source - 1)
    columns = jnp.arange(shape[1], dtype=jnp.int32)
    weights = jnp.where(low[..., None] == columns, 1 - fraction[..., None], 0)
    weights += jnp.where(high[..., None] == columns, fraction[..., None], 0)
    return jnp.where((i < target)[..., None], weights, 0).astype(dtype)


def resize_bilinear(
    x: jax.Array,
    shape: tuple[int, int],
    *,
    align_corners: bool,
    source_size: jax.Array | None = None,
    target_size: jax.Array | None = None,
) -> jax.Array:
    """Bilinear interpolation of x [N, h, w, C] to [N, *shape, C], without antialiasing, as torch's.

    Two matrix products: their transposes, unlike a gather's, are fast on TPUs.

    Args:
      x: Floating point.
      shape: Static height and width of the result.
      align_corners: As in torch.nn.functional.interpolate.
      source_size: int32 [N, 2], the area of each x that is interpolated, from its top left; all of it if None.
      target_size: int32 [N, 2], the area of each result that it fills, from its top left; all of it if None.
        The rest is zero.
    """
    for axis in (0, 1):
        source = x.shape[1 + axis] if source_size is None else source_size[:, axis]
        target = shape[axis] if target_size is None else target_size[:, axis]
        matrix = interpolation_matrix(
            source, target, (shape[axis], x.shape[1 + axis]), align_corners=align_corners, dtype=x.dtype
        )
        left = "oi" if matrix.ndim == 2 else "noi"
        right, out = ("niwc", "nowc") if axis == 0 else ("nhic", "nhoc")
        # By default TPUs multiply float32 in one bfloat16 pass, which would round the weights.
        x = jnp.einsum(f"{left},{right}->{out}", matrix, x, precision=jax.lax.Precision.HIGHEST)
    return x
