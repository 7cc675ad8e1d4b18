"""The photometric part of the transforms golden, computed on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from semiovs_jax import augment
from tests.golden import Golden


def device_outputs(golden: Golden) -> dict[str, np.ndarray]:
    """Computes blur/*, brightness/*, contrast/*, saturation/*, hue/*, jitter/*, grayscale3 and normalize.

    All are views of the landscape image. Of `normalize`, channels first, every second pixel is stored.
    """
    pixels = golden["img_land"]
    image = augment.as_float(jnp.asarray(pixels))[None]
    outputs = {
        f"{name}/{value}": to_bytes(adjust(image, jnp.array([value])))
        for name, (adjust, to_bytes) in _ADJUST.items()
        for value in golden.meta["blur_sigmas" if name == "blur" else name]
    }
    for jitter in golden.meta["jitter"]:
        outputs[jitter["key"]] = _truncated(augment.color_jitter(image, _parameters(jitter)))
    outputs["grayscale3"] = _rounded(jnp.broadcast_to(augment.grayscale(image), image.shape))
    outputs["normalize"] = np.moveaxis(np.asarray(augment.weak_view(pixels[None]))[0], -1, 0)[:, ::2, ::2]
    return outputs


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends images [N, H, W, 3] with black; `factor` [N], 1 leaves them unchanged."""
    return augment._blend(image, jnp.zeros_like(image), factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends images [N, H, W, 3] with their mean luma; `factor` [N], 1 leaves them unchanged."""
    return augment._blend(image, augment.grayscale(image).mean((1, 2), keepdims=True), factor)


def _parameters(jitter: dict) -> augment.Jitter:
    hue = 3
    order = jitter["order"]
    return augment.Jitter(
        factors=jnp.array([[jitter["brightness"], jitter["contrast"], jitter["saturation"]]]),
        turns=jnp.array([jitter["hue"]]),
        order=jnp.array([[op for op in order if op != hue]]),
        hue_position=jnp.array([order.index(hue)]),
    )


def _rounded(image: jax.Array) -> np.ndarray:
    return np.asarray(jnp.round(image[0])).astype(np.uint8)


def _truncated(image: jax.Array) -> np.ndarray:
    """Converts to 8 bits as PIL's blend does; a whole number may have a rounding error."""
    return np.asarray(jnp.floor(image[0] + 1e-3)).astype(np.uint8)


_ADJUST = {
    "blur": (augment.gaussian_blur, _rounded),
    "brightness": (adjust_brightness, _truncated),
    "contrast": (adjust_contrast, _truncated),
    "saturation": (augment.adjust_saturation, _truncated),
    "hue": (augment.adjust_hue, _rounded),
}
