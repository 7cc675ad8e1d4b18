"""MaskCLIP labels: image features, class scores, confidence and labels at several thresholds."""

import jax
import jax.numpy as jnp
import numpy as np

from semiovs_jax.augment import IMAGENET_MEAN, IMAGENET_STD
from semiovs_jax.models.clip.file import normalize
from semiovs_jax.ovs.maskclip import class_scores, label_scores
from tests.golden import Golden
from tests.replays.maskclip_vit import build, forward, image_of

_PREFIX = "clip_encoder."
_IGNORE_INDEX = 255


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Labels the stored image in every case of the golden."""
    config = golden.meta["config"]
    state_dict = {name.removeprefix(_PREFIX): value for name, value in golden.state_dict().items()}
    graph, params, _ = build(state_dict, config, double)
    fed = image_of(golden, "input", double)
    dense = {
        False: forward(graph, params, fed).dense,
        True: forward(graph, params, _renormalized(fed)).dense,
    }
    outputs: dict[str, np.ndarray] = {}
    for case, facts in golden.meta["cases"].items():
        features = dense[facts["renorm_clip_img"]]
        stem = facts["mcc_text"].removesuffix(".npy")
        text = golden[f"text_{case}" if f"text_{case}" in golden else f"text_{stem}"].astype(np.float32)
        groups = golden.meta["class_to_concept_idxs"].get(stem, {str(i): [i] for i in range(len(text))})
        order = [row for index in range(len(groups)) for row in groups[str(index)]]
        scores = class_scores(
            features,
            jnp.asarray(text[order], features.dtype),
            [len(groups[str(index)]) for index in range(len(groups))],
        )
        found = label_scores(scores, (fed.shape[1], fed.shape[2]), logit_scale=config["logit_scale"])
        outputs[f"{case}_feat"] = np.asarray(features).transpose(0, 3, 1, 2)
        outputs[f"{case}_dense_agg"] = np.asarray(scores).transpose(0, 3, 1, 2)
        outputs[f"{case}_certainty"] = np.asarray(found.confidence)
        for name, threshold in (
            ("labels", config["conf_tresh"]),
            ("labels_t05", 0.5),
            ("labels_unfiltered", 0.0),
        ):
            sure = found.valid & (found.confidence >= threshold)  # the gate of the method's terms
            outputs[f"{case}_{name}"] = np.where(sure, found.label, _IGNORE_INDEX).astype(np.uint8)
    return outputs


def _renormalized(image: jax.Array) -> jax.Array:
    """An image under ImageNet's statistics, under CLIP's."""
    mean, std = (jnp.asarray(values, image.dtype) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return normalize(255 * (image * std + mean), "clip")
