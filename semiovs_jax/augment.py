"""Views of a batch, made on the device inside the train step: photometric augmentation and CutMix.

Images are float NHWC on the 0..255 scale until `normalize`. The operations and their constants are those of UniMatch,
which SemiOVS keeps (reference: `dataset/semi.py`, `dataset/transform.py`). PIL's 8-bit rounding after every operation
and its box approximation of the Gaussian are not reproduced.

Every random parameter is a vector with one entry per image, and every operation acts on the whole batch. A batch that
is sharded over devices therefore needs no communication, and its views do not depend on the number of devices.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Statistics of ImageNet on the 0..1 scale. The pretrained backbones expect images normalized with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# ITU-R 601-2 luma, PIL's "L" mode.
LUMA = (0.299, 0.587, 0.114)

JITTER_PROBABILITY = 0.8
JITTER_BRIGHTNESS = JITTER_CONTRAST = JITTER_SATURATION = 0.5
JITTER_HUE = 0.25
GRAYSCALE_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)

BOX_AREA = (0.02, 0.4)
BOX_RATIO = (0.3, 1 / 0.3)
# A candidate of the largest area fits with probability 0.07 or more: all of them miss in less than 1e-7 of the draws.
BOX_CANDIDATES = 256


def as_float(image: jax.Array) -> jax.Array:
    """Returns `image` in the default float type (float64 under jax_enable_x64), values unchanged."""
    return image.astype(jnp.result_type(float))


def normalize(image: jax.Array) -> jax.Array:
    """Standardizes RGB images with ImageNet's statistics.

    Args:
      image: float [..., 3], 0..255.

    Returns:
      float [..., 3], about zero mean and unit variance per channel.
    """
    mean = 255 * jnp.array(IMAGENET_MEAN, image.dtype)
    std = 255 * jnp.array(IMAGENET_STD, image.dtype)
    return (image - mean) / std


def grayscale(image: jax.Array) -> jax.Array:
    """Returns the luma of RGB images: [..., 3] to [..., 1]."""
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends images [N, H, W, 3] with their luma; `factor` [N], 1 leaves them unchanged, 0 makes them gray."""
    return _blend(image, grayscale(image), factor)


def adjust_hue(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates the hue of RGB images, keeping HSV's value and saturation.

    Args:
      image: float [N, H, W, 3], 0..255.
      turns: float [N], in turns of the color circle: 1 (and 0) leave the image unchanged.

    Returns:
      float [N, H, W, 3].
    """
    red, green, blue = (image[..., i] for i in range(3))
    value = image.max(-1)
    chroma = value - image.min(-1)
    safe = jnp.where(chroma > 0, chroma, 1)
    # Not `value == red`: compilers compute `image` once for each reader, and with other roundings nothing is equal.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * turns[:, None, None]

    def channel(offset: int) -> jax.Array:
        position = sextant + offset
        position = position - 6 * jnp.floor(position / 6)
        return value - chroma * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], -1)


class Jitter(NamedTuple):
    """Parameters of one color jitter for each image of a batch.

    Attributes:
      factors: float [N, 3], of brightness, contrast and saturation; 1 is the identity.
      turns: float [N], the hue shift; 0 is the identity.
      order: int32 [N, 3], the order of those three: a permutation of 0, 1, 2 in each row.
      hue_position: int32 [N], how many of the three come before the hue shift.
    """

    factors: jax.Array
    turns: jax.Array
    order: jax.Array
    hue_position: jax.Array


def color_jitter(image: jax.Array, jitter: Jitter) -> jax.Array:
    """Applies brightness, contrast, saturation and hue to each image in its own order.

    The first three are blends with different partners (black, the mean luma, the luma), so one blend computes any of
    them. Three blends come before a single hue shift and three after it; a blend that an image has on the other side of
    the shift gets factor 1. These are 6 blends and 1 hue shift for the batch; a choice among four operations at each of
    four positions would compute 16.

    Args:
      image: float [N, H, W, 3], 0..255.
      jitter: the parameters.

    Returns:
      float [N, H, W, 3], 0..255.
    """
    place = jnp.arange(3)
    factors = jnp.take_along_axis(jitter.factors, jitter.order, axis=1)
    before = place < jitter.hue_position[:, None]

    def blends(image: jax.Array, applied: jax.Array) -> jax.Array:
        for i in range(3):
            kind = jitter.order[:, i, None, None, None]
            luma = grayscale(image)
            mean = luma.mean((1, 2), keepdims=True)
            partner = jnp.where(kind == 0, 0, jnp.where(kind == 1, mean, luma))
            image = _blend(image, partner, jnp.where(applied[:, i], factors[:, i], 1))
        return image

    return blends(adjust_hue(blends(image, before), jitter.turns), ~before)


def draw_jitter(key: jax.Array, n: int) -> Jitter:
    """Draws the strong view's color jitter for `n` images, the identity for some of them."""
    apply_key, factor_key, hue_key, order_key, position_key = jax.random.split(key, 5)
    applied = jax.random.bernoulli(apply_key, JITTER_PROBABILITY, (n,))
    strength = jnp.array([JITTER_BRIGHTNESS, JITTER_CONTRAST, JITTER_SATURATION])
    factors = 1 + strength * jax.random.uniform(factor_key, (n, 3), minval=-1, maxval=1)
    turns = jax.random.uniform(hue_key, (n,), minval=-JITTER_HUE, maxval=JITTER_HUE)
    return Jitter(
        factors=jnp.where(applied[:, None], factors, 1),
        turns=jnp.where(applied, turns, 0),
        order=jnp.argsort(jax.random.uniform(order_key, (n, 3))).astype(jnp.int32),
        hue_position=jax.random.randint(position_key, (n,), 0, 4),
    )


def gaussian_blur(image: jax.Array, sigma: jax.Array, max_sigma: float = BLUR_SIGMA[1]) -> jax.Array:
    """Blurs each image with its own Gaussian; pixels at the border are repeated outward.

    Args:
      image: float [N, H, W, C].
      sigma: float [N], standard deviation in pixels; 0 leaves an image unchanged.
      max_sigma: largest value of `sigma`; the kernel's radius is three times this.

    Returns:
      float [N, H, W, C].
    """
    radius = math.ceil(3 * max_sigma)
    padded = jnp.pad(image, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="edge")
    # Products with band matrices: they split over the batch, unlike a convolution with a kernel per image, and the
    # compiler does not recompute the jitter for every tap, as it does for sums of shifted images.
    rows, columns = (_blur_matrix(sigma.astype(image.dtype), size, radius) for size in image.shape[1:3])
    exact = jax.lax.Precision.HIGHEST
    blurred = jnp.einsum("nyi,nijc->nyjc", rows, padded, precision=exact)
    return jnp.einsum("nxj,nyjc->nyxc", columns, blurred, precision=exact)


def _blur_matrix(sigma: jax.Array, size: int, radius: int) -> jax.Array:
    """Weight of each pixel of a line padded by `radius` in each blurred one: [N, size, size + 2 * radius]."""
    distance = jnp.arange(size + 2 * radius) - radius - jnp.arange(size)[:, None]
    # A sigma of 1e-3 underflows every weight but the central one.
    scaled = distance / jnp.maximum(sigma, 1e-3)[:, None, None]
    weight = jnp.where(abs(distance) <= radius, jnp.exp(-(scaled**2) / 2), 0)
    return weight / weight.sum(-1, keepdims=True)


def weak_view(image: jax.Array) -> jax.Array:
    """Returns the normalized image; the input pipeline has already scaled, cropped and flipped it.

    Args:
      image: uint8 [N, H, W, 3].

    Returns:
      float [N, H, W, 3], normalized.
    """
    return normalize(as_float(image))


@jax.jit  # traced once for the views of all streams
def strong_view(key: jax.Array, image: jax.Array) -> jax.Array:
    """Returns a photometrically augmented view of each image, drawn independently.

    Color jitter with probability 0.8, grayscale with 0.2, Gaussian blur with 0.5 (reference: `dataset/semi.py`).

    Args:
      key: random key.
      image: uint8 [N, H, W, 3].

    Returns:
      float [N, H, W, 3], normalized.
    """
    n = image.shape[0]
    jitter_key, gray_key, blur_key, sigma_key = jax.random.split(key, 4)
    colored = jax.random.bernoulli(gray_key, 1 - GRAYSCALE_PROBABILITY, (n,))
    blurred = jax.random.bernoulli(blur_key, BLUR_PROBABILITY, (n,))
    sigma = jax.random.uniform(sigma_key, (n,), minval=BLUR_SIGMA[0], maxval=BLUR_SIGMA[1])

    view = color_jitter(as_float(image), draw_jitter(jitter_key, n))
    view = adjust_saturation(view, colored.astype(view.dtype))
    view = gaussian_blur(view, jnp.where(blurred, sigma, 0))
    return normalize(view)


@functools.partial(jax.jit, static_argnames=("n", "size"))  # traced once for both boxes
def cutmix_boxes(key: jax.Array, n: int, size: int, probability: float = 0.5) -> jax.Array:
    """Draws one CutMix box for each of `n` square images.

    The area is drawn once, 2 to 40 % of the image. The aspect ratio (uniform in 0.3 to 1/0.3) and the corner are drawn
    again until the box is inside the image (reference: `obtain_cutmix_box`).

    Args:
      key: random key.
      n: number of images.
      size: their side in pixels.
      probability: of a box; the others are empty.

    Returns:
      bool [n, size, size], True inside the box.
    """
    apply_key, area_key, ratio_key, corner_key = jax.random.split(key, 4)
    applied = jax.random.bernoulli(apply_key, probability, (n,))
    area = size**2 * jax.random.uniform(area_key, (n,), minval=BOX_AREA[0], maxval=BOX_AREA[1])
    shape = (n, BOX_CANDIDATES)
    ratio = jax.random.uniform(ratio_key, shape, minval=BOX_RATIO[0], maxval=BOX_RATIO[1])
    corner = jax.random.randint(corner_key, (*shape, 2), 0, size)
    top, left, height, width = first_box_inside(area, ratio, corner, size)

    row = jnp.arange(size)[None, :, None]
    column = jnp.arange(size)[None, None, :]
    top, left, height, width = (v[:, None, None] for v in (top, left, height, width))
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return inside & applied[:, None, None]


def first_box_inside(
    area: jax.Array, ratio: jax.Array, corner: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Chooses for each image the first candidate box that is inside it.

    Args:
      area: float [N], in pixels.
      ratio: float [N, M], height over width of each candidate.
      corner: int [N, M, 2], the (top, left) pixel of each candidate.
      size: side of the image in pixels.

    Returns:
      top, left, height, width: int32 [N] each. If no candidate fits, a square at the image's corner.
    """
    # A square always fits: it is appended as the last candidate, which argmax chooses if no other fits.
    ratio = jnp.pad(ratio, ((0, 0), (0, 1)), constant_values=1)
    corner = jnp.pad(corner, ((0, 0), (0, 1), (0, 0)))
    height = jnp.sqrt(area[:, None] * ratio).astype(jnp.int32)
    width = jnp.sqrt(area[:, None] / ratio).astype(jnp.int32)
    fits = (corner[..., 0] + height <= size) & (corner[..., 1] + width <= size)
    chosen = jnp.argmax(fits, axis=1, keepdims=True)
    candidates = (corner[..., 0], corner[..., 1], height, width)
    top, left, height, width = (jnp.take_along_axis(v, chosen, axis=1)[:, 0] for v in candidates)
    return top, left, height, width


def paste(target: jax.Array, source: jax.Array, box: jax.Array) -> jax.Array:
    """Returns `target` with `source` inside `box`.

    Args:
      target: [N, H, W] or [N, H, W, C].
      source: of target's shape.
      box: bool [N, H, W].

    Returns:
      An array of target's shape.
    """
    return jnp.where(box[..., None] if target.ndim == box.ndim + 1 else box, source, target)


def _blend(image: jax.Array, partner: jax.Array, factor: jax.Array) -> jax.Array:
    factor = factor.astype(image.dtype)[:, None, None, None]
    return jnp.clip(factor * image + (1 - factor) * partner, 0, 255)
