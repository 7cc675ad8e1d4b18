"""The views of one step, made on the device from the batch's uint8 crops: weak, strong, CutMix boxes, channel masks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from semiovs_jax import augment
from semiovs_jax.methods import Method

Batch = Mapping[str, Mapping[str, jax.Array]]  # the streams of `data_pipelines.pipeline`, a dictionary each


@struct.dataclass
class Views:
    """The views of one step. Images are float [N, H, W, 3], normalized; planes are [N, H, W].

    Attributes:
      weak: weak view of each stream, by its name.
      s1: first strong view of each unlabeled stream, before CutMix.
      s2: second strong view of each, before CutMix.
      valid: bool plane of each stream, False on padding.
      label: int32, ground truth of the labeled stream, with the ignore index.
      box1: bool, CutMix boxes of the first strong views; empty without terms.
      box2: bool, CutMix boxes of the second.
      weak_masks: float [m, kN, C] for each perturbed feature level: channel masks of the k weak views that are
        predicted jointly, interleaved; empty without.
      strong_masks: float [1, 2N, C] for each level, by stream: channel masks of the strong views, interleaved.
    """

    weak: dict[str, jax.Array]
    s1: dict[str, jax.Array]
    s2: dict[str, jax.Array]
    valid: dict[str, jax.Array]
    label: jax.Array
    box1: jax.Array
    box2: jax.Array
    weak_masks: tuple[jax.Array, ...] = ()
    strong_masks: dict[str, tuple[jax.Array, ...]] = struct.field(default_factory=dict)


def make_views(key: jax.Array, batch: Batch, method: Method, perturbed_channels: tuple[int, ...]) -> Views:
    """Makes every view of a step from the batch's uint8 crops.

    Args:
      key: random key of this step.
      batch: the streams that `method` names.
      method: decides what is made.
      perturbed_channels: channels of each feature level that takes masks.
    """
    weak = {name: augment.weak_view(batch[name]["image"]) for name in method.streams}
    valid = {name: batch[name]["valid"] for name in method.streams}
    label = batch["labeled"]["label"].astype(jnp.int32)
    count, size = label.shape[:2]
    if not method.terms:
        no_boxes = jnp.zeros((0, size, size), bool)
        return Views(weak, {}, {}, valid, label, no_boxes, no_boxes)

    strong1_key, strong2_key, box1_key, box2_key, mask_key = jax.random.split(key, 5)
    unlabeled = [name for name in method.streams if name != "labeled"]

    def strong(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(unlabeled))
        return {name: augment.strong_view(k, batch[name]["image"]) for name, k in zip(unlabeled, keys, strict=True)}

    weak_masks: tuple[jax.Array, ...] = ()
    strong_masks: dict[str, tuple[jax.Array, ...]] = {}
    if method.weak_masks is not None:
        weak_masks = method.weak_masks(mask_key, count * (1 + len(method.weak_streams)), perturbed_channels)
    if method.strong_masks is not None:
        strong_masks = {
            name: method.strong_masks(jax.random.fold_in(mask_key, index), 2 * count, perturbed_channels)
            for index, name in enumerate(method.predicted_streams)
        }
    return Views(
        weak=weak,
        valid=valid,
        label=label,
        s1=strong(strong1_key),
        s2=strong(strong2_key),
        box1=augment.cutmix_boxes(box1_key, count, size),
        box2=augment.cutmix_boxes(box2_key, count, size),
        weak_masks=weak_masks,
        strong_masks=strong_masks,
    )


def mixed_views(views: Views, stream: str, method: Method) -> tuple[jax.Array, jax.Array]:
    """Both strong views of a stream after CutMix. The partner's are pasted as they are before their own CutMix."""
    return (
        augment.paste(views.s1[stream], of_partner(views.s1, stream, method), views.box1),
        augment.paste(views.s2[stream], of_partner(views.s2, stream, method), views.box2),
    )


def of_partner(values: Mapping[str, Any], stream: str, method: Method) -> Any:
    """What CutMix pastes into a stream: its partner's arrays, or its own in reversed order of the batch.

    Args:
      values: pytrees of arrays [N, ...] by stream.
      stream: the stream that receives.
      method: its `partners`.
    """
    partner = method.partners[stream]
    return jax.tree.map(lambda array: array[::-1], values[partner]) if partner == stream else values[partner]
