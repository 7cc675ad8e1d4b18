"""Losses, CutMix, metrics and schedules on the reference's inputs, and the reference's losses that we do not use."""

import jax
import jax.numpy as jnp
import numpy as np

from semiovs_jax import augment, losses
from semiovs_jax.evaluation import metrics
from semiovs_jax.methods.prevmatch import triangle
from semiovs_jax.methods.table import Progress
from semiovs_jax.optim import poly_learning_rate
from tests.golden import Golden


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Computes every required key of a losses_unimatch golden, and the optional keys that apply here."""
    dtype = np.float64 if double else np.float32
    outputs: dict[str, jax.typing.ArrayLike] = {}
    for part in (_gated, _cutmix, _cross_entropy, _ohem):
        outputs |= part(golden, dtype)
    outputs |= _scores(golden)
    outputs |= _schedules(golden)
    return {key: np.asarray(value) for key, value in outputs.items()}


def _gated(golden: Golden, dtype: type) -> dict[str, jax.typing.ArrayLike]:
    loss = jnp.asarray(golden["cwl/loss"], dtype)
    confidence = jnp.asarray(golden["cwl/conf"])
    valid = jnp.asarray(golden["cwl/ignore"] != 255)
    thresholds = golden["cwl/thresholds"].astype(np.float32)
    modes = golden.meta["modes"]

    def value(loss: jax.Array, mode: losses.GateMode, threshold: np.float32) -> jax.Array:
        return published_gated_mean(loss, confidence, valid, threshold, mode)

    both = jax.jit(jax.value_and_grad(value), static_argnums=1)
    results = [[both(loss, mode, threshold) for threshold in thresholds] for mode in modes]
    huge = jnp.where(valid, loss, 1e4)
    return {
        "cwl/value": np.array([[v for v, _ in row] for row in results]),
        "cwl/grad": np.array([[g for _, g in row] for row in results]),
        "cwl/value_ignored_1e4": np.array([value(huge, mode, thresholds[0]) for mode in modes]),
    }


def published_gated_mean(
    loss: jax.Array, confidence: jax.Array, valid: jax.Array, threshold: jax.typing.ArrayLike, mode: losses.GateMode
) -> jax.Array:
    """As `losses.gated_mean`, with two slips of the reference in its image-wise modes.

    Loss on invalid pixels counts, too, and pixelavg multiplies each image's weight with the loss of the whole batch.
    """
    if mode == "pixelwise":
        return losses.gated_mean(loss, confidence, valid, threshold, mode)
    gate = confidence if mode == "pixelavg" else confidence >= threshold
    weight = jax.vmap(losses.masked_mean)(gate.astype(loss.dtype), valid)
    per_image = loss.sum((1, 2))
    total = per_image.sum() if mode == "pixelavg" else per_image
    return (total * weight).sum() / jnp.maximum(jnp.count_nonzero(valid), 1).astype(loss.dtype)


def ohem_kept(logits: jax.Array, label: jax.Array, valid: jax.Array, *, threshold: float, min_kept: int) -> jax.Array:
    """Chooses the hard pixels of a batch (reference: `ProbOhemCrossEntropy2d`).

    Keeps the valid pixels whose probability of the true class is at most `threshold`, or at most that of the
    `min_kept`-th hardest pixel, whichever keeps more. If fewer than `min_kept` are valid, keeps all of them. In the
    reference, `min_kept` = 0 keeps everything; here it does not.

    Args:
      logits: float [N, H, W, K].
      label: int [N, H, W].
      valid: bool [N, H, W].
      threshold: probability up to which a pixel is hard.
      min_kept: least number of pixels to keep in the batch.

    Returns:
      bool [N, H, W].
    """
    probability = jax.lax.stop_gradient(jnp.exp(-losses.cross_entropy(logits, label)))
    probability = jnp.where(valid, probability, 1)
    if min_kept > 0:
        hardest_first = jnp.sort(probability, axis=None)
        least = hardest_first[min(min_kept, probability.size) - 1]
        return valid & (probability <= jnp.maximum(least, threshold))
    return valid & (probability <= threshold)


def ohem_cross_entropy(
    logits: jax.Array, label: jax.Array, valid: jax.Array, *, threshold: float, min_kept: int
) -> jax.Array:
    """Mean cross-entropy over the hard pixels; arguments as in `ohem_kept`."""
    kept = ohem_kept(logits, label, valid, threshold=threshold, min_kept=min_kept)
    return losses.masked_mean(losses.cross_entropy(logits, label), kept)


def _cutmix(golden: Golden, dtype: type) -> dict[str, jax.typing.ArrayLike]:
    box = jnp.asarray(golden["cutmix/box"] == 1)
    image, other = (np.moveaxis(golden[f"cutmix/{k}"], 1, -1).astype(dtype) for k in ("img", "img_mix"))
    return {
        "cutmix/img_out": jnp.moveaxis(augment.paste(jnp.asarray(image), jnp.asarray(other), box), -1, 1),
        **{
            f"cutmix/{k}_out": augment.paste(
                jnp.asarray(golden[f"cutmix/{k}"]), jnp.asarray(golden[f"cutmix/{k}_mix"]), box
            )
            for k in ("mask", "conf")
        },
    }


def _cross_entropy(golden: Golden, dtype: type) -> dict[str, jax.typing.ArrayLike]:
    logits = _channels_last(golden["ce/logits"], dtype)
    label = jnp.asarray(golden["ce/target"], jnp.int32)
    all_labeled = jnp.asarray(golden["ce/target_no_ignore"], jnp.int32)
    mean, gradient = jax.value_and_grad(
        lambda logits: losses.masked_mean(losses.cross_entropy(logits, label), label != 255)
    )(logits)
    probability = jax.nn.softmax(logits)
    return {
        "ce/mean_ignore255": mean,
        "ce/mean_ignore255_grad": jnp.moveaxis(gradient, -1, 1),
        "ce/none": losses.cross_entropy(logits, all_labeled),
        "ce/conf": probability.max(-1),
        "ce/argmax": probability.argmax(-1).astype(jnp.uint8),
    }


def _ohem(golden: Golden, dtype: type) -> dict[str, jax.typing.ArrayLike]:
    outputs: dict[str, jax.typing.ArrayLike] = {}
    ohem = jax.jit(jax.value_and_grad(ohem_cross_entropy), static_argnames=("threshold", "min_kept"))
    for case in golden.meta["ohem_cases"]:
        # Class weights are not implemented, and min_kept = 0 differs from the reference, see `ohem_kept`.
        if case["use_weight"] or case["min_kept"] == 0:
            continue
        name, ignore = f"ohem/{case['name']}", case["ignore_index"]
        logits = _channels_last(golden[f"{name}/logits"], dtype)
        label = jnp.asarray(golden[f"{name}/target"], jnp.int32)
        settings = {"threshold": case["thresh"], "min_kept": case["min_kept"]}
        value, gradient = ohem(logits, label, label != ignore, **settings)
        kept = ohem_kept(logits, label, label != ignore, **settings)
        outputs[f"{name}/value"] = value
        outputs[f"{name}/kept_target"] = jnp.where(kept, label, ignore).astype(jnp.uint8)
        outputs[f"{name}/grad_s"] = jnp.moveaxis(gradient, -1, 1)[:, :, ::3, ::3]
    return outputs


def _scores(golden: Golden) -> dict[str, jax.typing.ArrayLike]:
    classes = golden.meta["nclass"]
    outputs: dict[str, jax.typing.ArrayLike] = {}
    total = np.zeros((classes, classes), np.int64)
    for name in sorted({key.rsplit("/", 1)[0] for key in golden.keys if key.startswith("iou/") and "pred" in key}):
        label = jnp.asarray(golden[f"{name}/mask"], jnp.int32)[None]
        prediction = jnp.asarray(golden[f"{name}/pred"], jnp.int32)[None]
        confusion = np.asarray(metrics.confusion_matrix(label, prediction, label != 255, classes), np.int64)
        outputs[f"{name}/intersection"] = confusion.diagonal()
        outputs[f"{name}/union"] = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        outputs[f"{name}/target"] = confusion.sum(1)
        total += confusion
    scores = metrics.scores(total)
    return outputs | {"iou/iou_class": 100 * scores.iou, "iou/mIoU": 100 * scores.mean_iou}


def _schedules(golden: Golden) -> dict[str, jax.typing.ArrayLike]:
    mu = golden["lambda_schedule"][:, :3]
    decay = golden["lr_after_iter"][:, :3]
    assert all(peak == total // 2 for _, total, peak in mu)
    weights = [triangle(Progress(epoch, steps_per_epoch=1, total_steps=int(total))) for epoch, total, _ in mu]
    rates = [poly_learning_rate(base, int(total))(step + 1) for base, total, step in decay]
    return {
        "lambda_schedule": np.column_stack([mu, weights]),
        "lr_after_iter": np.column_stack([decay, rates]),
    }


def _channels_last(array: np.ndarray, dtype: type) -> jax.Array:
    return jnp.asarray(np.moveaxis(array, 1, -1), dtype)
