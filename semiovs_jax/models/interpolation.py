"""Interpolation as matrices: separable resizing of planes whose sizes are known when tracing, or only when running.

All follow torch's `interpolate(align_corners=False)` without antialiasing: output pixel i reads the source at
(i + 0.5) * source / target - 0.5, taps outside the source repeat its edge.
"""

import jax
import jax.numpy as jnp
import numpy as np

_CUBIC_A = -0.75


def _cubic_weights(offset: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel at distance `offset` (in pixels) from a tap."""
    a, x = _CUBIC_A, np.abs(offset)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def cubic_matrix(source: int, target: int) -> np.ndarray:
    """Float64 [target, source] bicubic interpolation matrix along one axis."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        weight = _cubic_weights(position - (first + tap))
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, source - 1)), weight)
    return matrix


def linear_matrix(source: int, target: int) -> np.ndarray:
    """Float64 [target, source] bilinear interpolation matrix along one axis."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(source)), 0)


def traced_linear_matrix(source: int, target: jax.Array, canvas: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Bilinear interpolation matrices to sizes known only at run time.

    Args:
      source: pixels of the source axis.
      target: int32 [N], pixels of each image's target axis, 1 <= target <= canvas.
      canvas: rows of the matrices.
      dtype: of the result.

    Returns:
      [N, canvas, source]: rows below `target` equal `linear_matrix(source, target)`, rows beyond it repeat the
      source's last pixel.
    """
    scale = source / target.astype(dtype)
    position = (jnp.arange(canvas, dtype=dtype) + 0.5) * scale[:, None] - 0.5
    position = jnp.clip(position, 0, source - 1)
    return jnp.maximum(1 - jnp.abs(position[..., None] - jnp.arange(source, dtype=dtype)), 0)
