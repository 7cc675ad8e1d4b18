"""Replays SemiVL's evaluation: whole images, windows with mean logits, windows with summed probabilities."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from semiovs_jax.evaluation.sliding import sliding_logits
from semiovs_jax.models.layers import resize_bilinear
from tests.golden import Golden

Predict = Callable[[jax.Array], jax.Array]


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Evaluates every stored image in every mode but the center crop, which shows part of an image only."""
    dtype = np.float64 if double else np.float32
    config, predict = golden.meta["config"], fake_model(golden, dtype)
    outputs: dict[str, np.ndarray] = {}
    for case, sizes in golden.meta["sizes"].items():
        image = (jnp.asarray(golden[f"{case}_img"].transpose(0, 2, 3, 1), dtype) - 127.5) / 64
        windows = {"window": config["crop_size"], "stride": config["stride"]}
        merged, resized = averaged_logits(predict, image, **windows, shape=tuple(sizes["mask"]))
        outputs[f"{case}_zegclip_sliding_window_merged_s2"] = _every_second(merged)
        modes = {
            "zegclip_sliding_window": resized,
            "original": predict(image),
            "sliding_window": summed_probabilities(predict, image, windows["window"], windows["window"] * 2 // 3),
            "padded_sliding_window": summed_probabilities(predict, image, **windows, pad=True),
        }
        for mode, logits in modes.items():
            values = np.asarray(logits, np.float64)
            outputs[f"{case}_{mode}_pred"] = values.argmax(-1).astype(np.uint8)
            outputs[f"{case}_{mode}_logits_s2"] = _every_second(logits)
            outputs[f"{case}_{mode}_logits_stats"] = np.array([values.mean(), values.std(), np.abs(values).max()])
    return outputs


@functools.partial(jax.jit, static_argnames=("predict", "window", "stride", "shape"))
def averaged_logits(
    predict: Predict, image: jax.Array, window: int, stride: int, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Mean logits over windows, at the image's size and at its label's."""
    merged = sliding_logits(predict, image, window=window, stride=stride)
    return merged, resize_bilinear(merged, shape, align_corners=True)


def fake_model(golden: Golden, dtype: type) -> Predict:
    """A 3x3 convolution, minus its spatial mean, ReLU, and a 1x1 convolution: it knows the window that it sees."""
    weights = {name: jnp.asarray(value, dtype) for name, value in golden.state_dict().items()}

    def convolution(x: jax.Array, name: str) -> jax.Array:
        kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + weights[f"{name}.bias"]

    @jax.jit
    def predict(image: jax.Array) -> jax.Array:
        y = convolution(image, "conv1")
        return convolution(jax.nn.relu(y - y.mean((1, 2), keepdims=True)), "conv2")

    return predict


def summed_probabilities(
    predict: Predict, image: jax.Array, window: int, stride: float, pad: bool = False
) -> np.ndarray:
    """The reference's other windows: not shifted back but cut off at the border (`pad`: filled up with zeros).

    The project does not evaluate so: it stands here to compare the rest of what the golden holds.
    """
    stride = int(window * stride) if stride < 1 else int(stride)
    height, width = image.shape[1:3]
    probabilities = jax.jit(lambda x: jax.nn.softmax(predict(x), axis=-1))
    total = np.zeros_like(predict(image))
    for top in range(0, height, stride):
        for left in range(0, width, stride):
            rows, columns = slice(top, min(top + window, height)), slice(left, min(left + window, width))
            seen = np.asarray(image)[:, rows, columns]
            if pad:
                missing = [(0, window - seen.shape[axis]) for axis in (1, 2)]
                seen = np.pad(seen, ((0, 0), *missing, (0, 0)))
            found = np.asarray(probabilities(seen))
            total[:, rows, columns] += found[:, : rows.stop - top, : columns.stop - left]
    return total


def _every_second(logits: jax.Array | np.ndarray) -> np.ndarray:
    return np.asarray(logits).transpose(0, 3, 1, 2)[:, :, ::2, ::2]
