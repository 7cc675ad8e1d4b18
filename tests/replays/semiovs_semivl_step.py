"""Whole training iterations of SemiOVS on SemiVL, from stored views: losses, gradients, parameters, logits."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from semiovs_jax import augment, methods, optim, train_step
from semiovs_jax.labelers.ovs import binarize_confidence
from semiovs_jax.models import Functional
from semiovs_jax.models.clip.vit import ClipVit
from semiovs_jax.models.semivl.params import STUDENT_RULES, convert_label_maker, convert_semivl_student, infer_semivl
from semiovs_jax.models.semivl.semivl import SemiVL
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.ovs.maskclip import MaskClip
from semiovs_jax.runtime import sharding
from semiovs_jax.train_state import TrainState
from semiovs_jax.weights.keys import find_rule, flatten
from tests.golden import Golden

POWER = 0.9  # of the learning rate's decay, which the reference's config does not name
LOGIT_SCALE = 100.0  # of the MaskCLIP labels, likewise
STREAMS = {"unlabeled": "", "mix": "_other", "ood": "_ood"}
TERM_NAMES = {f"u_{p}{ours}": f"loss{theirs}_{p}{end}" for p in ("s1", "s2", "fp") for ours, theirs, end in (
    ("", "", ""), ("_mc", "_mc", ""), ("_ood", "", "_ood"),
)}  # fmt: skip


def replay(golden: Golden, double: bool, iterations: int | None = None) -> dict[str, np.ndarray]:
    """Trains for the stored iterations, or the first few, and after all of them evaluates the student."""
    dtype = jnp.float64 if double else jnp.float32
    meta, source = golden.meta, golden.state_dict()
    config = meta["config"]
    crop, ignore_index = config["crop_size"], config["criterion"]["kwargs"]["ignore_index"]
    architecture = infer_semivl(source, out_layers=meta["out_indices"][:-1])
    model = SemiVL(architecture, config["nclass"], image_size=crop, rngs=nnx.Rngs(0))
    student, params, batch_stats = Functional.create(model)
    params, batch_stats = convert_semivl_student(source, params, batch_stats, name=golden.path.name)
    batch_stats = {**batch_stats, "text": golden["text_decode"]}
    params, batch_stats = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, batch_stats))

    spec = train_step.StepSpec(
        student=student,
        perturbed_channels=model.perturbed_channels,
        method=methods.make_method(_method_config(meta)),
        labelers={},
        optimizer=optim.make_optimizer(_optim_config(config), meta["total_iters"], model.parameter_groups),
        ignore_index=ignore_index,
        seed=0,
        steps_per_epoch=meta["total_iters"],
        total_steps=meta["total_iters"],
    )
    label_maker = _label_maker(golden, source, dtype)

    @jax.jit
    def update(state: TrainState, views: train_step.Views, labels: train_step.Labels) -> train_step.Update:
        return train_step.update(state, views, labels, spec)

    @jax.jit
    def evaluate(state: TrainState, image: jax.Array) -> jax.Array:
        return student.apply(state.params, state.batch_stats, image, train=False)[0]

    count = iterations or meta["niter"]
    views = [_views(golden, index, label_maker, ignore_index, dtype) for index in range(count)]
    labels = [_labels(golden, index, given, label_maker, ignore_index) for index, given in enumerate(views)]
    state = TrainState.create(params, batch_stats, spec.optimizer, {})
    updates = []
    for given, known in zip(views, labels, strict=True):
        updates.append(update(state, given, known))
        state = updates[-1].state

    found = _losses(updates, spec) | _predictions(updates, views)
    names = [name for name, *_ in meta["trainable"]]
    for index, done in enumerate(updates):
        found[f"grad_l2_it{index}"] = _norms(names, done.gradient)
    if count == meta["niter"]:
        found["param_l2"] = _norms(names, state.params)
        found["delta_l2"] = _norms(names, jax.tree.map(lambda new, old: new - old, state.params, params))
        for key, stream in (("probe_x0", "labeled"), ("probe_w0", "unlabeled")):
            logits = evaluate(state, views[0].weak[stream])
            found[f"{key}_s8"] = _sampled(logits)
            found[f"{key}_stats"] = np.array([logits.mean(), logits.std(), jnp.abs(logits).max()])
    suffix = "_f64" if double else ""
    return {key + suffix: value for key, value in found.items() if key + suffix in golden}


def _method_config(meta: dict[str, Any]) -> ConfigDict:
    config = meta["config"]
    weight, last_weight = config["maskclip_consistency_lambda"]
    assert last_weight == 0, "the weight of MaskCLIP labels falls to 0"
    assert config["mcc_loss_reduce"] == "mean_all"
    return ConfigDict(
        {
            "name": "semivl",
            "ood": "ovs",
            "ood_weight": meta["weight_lambda_ood"],
            "confidence_threshold": config["conf_thresh"],
            "ovs_threshold": 0.0,
            "maskclip": {"weight": weight, "confidence_threshold": config["mcc_conf_thresh"]},
        }
    )


def _optim_config(config: dict[str, Any]) -> ConfigDict:
    given = config["optimizer"]
    multipliers = given["paramwise_cfg"]["custom_keys"]
    return ConfigDict(
        {
            "name": given["type"].lower(),
            "learning_rate": given["lr"],
            "backbone_multiplier": multipliers["backbone"]["lr_mult"],
            "head_multiplier": multipliers["head"]["lr_mult"],
            "weight_decay": given["weight_decay"],
            "power": POWER,
        }
    )


def _label_maker(golden: Golden, source: dict[str, np.ndarray], dtype: Any) -> MaskClip:
    vision, tower = convert_label_maker(source, name=golden.path.name)
    groups = [golden.meta["class_to_concept_idxs"][str(i)] for i in range(golden.meta["config"]["nclass"])]
    text = golden["text_mcc"][[row for group in groups for row in group]]
    return MaskClip(
        weights=jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), {"visual": tower, "text": text}),
        num_classes=len(groups),
        image_size=golden.meta["config"]["crop_size"],
        fingerprint="",
        visual=nnx.graphdef(nnx.eval_shape(lambda: ClipVit(vision, rngs=nnx.Rngs(0)))),
        concepts_per_class=tuple(len(group) for group in groups),
        normalization="imagenet",
        logit_scale=LOGIT_SCALE,
    )


def _views(golden: Golden, index: int, label_maker: MaskClip, ignore_index: int, dtype: Any) -> train_step.Views:
    def stored(key: str) -> np.ndarray:
        return golden[f"it{index}_in_{key}"]

    mean, std = (np.array(values, np.float32) for values in (augment.IMAGENET_MEAN, augment.IMAGENET_STD))

    def image(key: str) -> jax.Array:
        # Normalized in float32, also for the float64 run, whose yardstick is not to be these roundings.
        scaled = stored(key).transpose(0, 2, 3, 1) / np.float32(255)
        return jnp.asarray((scaled - mean) / std, dtype)

    def masks(level: int, channels: int) -> jax.Array:
        # Stored stream by stream; the step interleaves the streams.
        kept = np.unpackbits(stored(f"fpmask{level}"), axis=1)[:, :channels].astype(np.float32)
        kept = sharding.interleave(*jnp.split(jnp.asarray(kept), 3))
        return jnp.stack([jnp.ones_like(kept), 2 * kept])

    valid = {name: jnp.asarray(stored(f"ignore_mask{end}") != ignore_index) for name, end in STREAMS.items()}
    label = jnp.asarray(stored("mask_x"), jnp.int32)
    channels = (*[label_maker.weights["visual"]["pre_norm"]["scale"].size] * 2, label_maker.weights["text"].shape[1])
    return train_step.Views(
        weak={"labeled": image("img_x")} | {name: image(f"img_w{end}") for name, end in STREAMS.items()},
        s1={name: image(f"img_s1{end}") for name, end in STREAMS.items()},
        s2={name: image(f"img_s2{end}") for name, end in STREAMS.items()},
        valid=valid | {"labeled": jnp.ones(label.shape, bool)},
        label=label,
        box1=jnp.asarray(stored("mix1"), bool),
        box2=jnp.asarray(stored("mix2"), bool),
        weak_masks=tuple(masks(level, count) for level, count in enumerate(channels)),
    )


def _labels(
    golden: Golden, index: int, views: train_step.Views, label_maker: MaskClip, ignore_index: int
) -> train_step.Labels:
    """The OVS's stored labels, and those of the frozen CLIP."""
    label = jax.jit(label_maker.label, static_argnames="label_size")
    labels = {}
    for stream in ("unlabeled", "mix"):
        image = views.weak[stream]
        mean, std = (
            jnp.asarray(np.float32(values), image.dtype) for values in (augment.IMAGENET_MEAN, augment.IMAGENET_STD)
        )
        found = label(label_maker.weights, 255 * (image * std + mean), label_size=image.shape[1:3])
        labels["maskclip", stream] = found._replace(valid=found.valid & views.valid[stream])
    ood = jnp.asarray(golden[f"it{index}_in_mask_ood"])
    given = PseudoLabel(ood, jnp.ones(ood.shape), views.valid["ood"])
    return labels | {("ovs", "ood"): binarize_confidence(given, ignore_index=ignore_index)}


def _losses(updates: list[train_step.Update], spec: train_step.StepSpec) -> dict[str, np.ndarray]:
    outcomes = [update.outcome for update in updates]
    found = {
        "loss": np.array([update.loss for update in updates]),
        "loss_x": np.array([outcome.supervised for outcome in outcomes]),
    }
    for ours, theirs in TERM_NAMES.items():
        found[theirs] = np.array([outcome.terms[ours].loss for outcome in outcomes])
    weights = [
        spec.method.weights(methods.Progress(index, spec.steps_per_epoch, spec.total_steps), {})
        for index in range(len(updates))
    ]
    ood, dense = ([t for t in spec.method.terms if t.labeler == labeler] for labeler in ("ovs", "maskclip"))
    found["loss_ood"] = np.array(
        [sum(w[t.name] * o.terms[t.name].loss for t in ood) for w, o in zip(weights, outcomes, strict=True)]
    )
    found["current_mcc_lambda"] = np.array([sum(float(w[t.name]) for t in dense) for w in weights])
    return found


def _predictions(updates: list[train_step.Update], views: list[train_step.Views]) -> dict[str, np.ndarray]:
    found = {}
    for index, update in enumerate(updates):
        predictions, labels = update.outcome.predictions, update.outcome.labels
        found |= {
            f"it{index}_pred_x_s8": _sampled(predictions.labeled),
            f"it{index}_pred_w_s8": _sampled(predictions.weak["unlabeled"]),
            f"it{index}_pred_s1_s8": _sampled(predictions.s1["unlabeled"]),
            f"it{index}_pred_s2_s8": _sampled(predictions.s2["unlabeled"]),
            f"it{index}_pred_w_fp_s8": _sampled(predictions.fp["unlabeled"]),
            f"it{index}_pred_s1_ood_s8": _sampled(predictions.s1["ood"]),
            f"it{index}_pred_s2_ood_s8": _sampled(predictions.s2["ood"]),
            f"it{index}_pred_w_fp_ood_s8": _sampled(predictions.fp["ood"]),
            f"it{index}_pred_w_other_s8": _sampled(predictions.frozen["mix"]),
            f"it{index}_conf_w_s4": np.asarray(labels["student", "unlabeled"].confidence)[:, ::4, ::4],
            f"it{index}_mask_w": np.asarray(labels["student", "unlabeled"].label, np.uint8),
            f"it{index}_mask_w_other": np.asarray(labels["student", "mix"].label, np.uint8),
        }
    return found


def _norms(names: list[str], tree: Any) -> np.ndarray:
    """Norms of the tensors of published names; query, key and value are packed there."""
    leaves = flatten(tree)

    def paths(name: str) -> list[str]:
        packed = re.fullmatch(r"(.*)in_proj_(weight|bias)", name)
        unpacked = [f"{packed[1]}{part}_proj.{packed[2]}" for part in "qkv"] if packed else [name]
        found = [find_rule(part, STUDENT_RULES) for part in unpacked]
        assert all(found), name
        return [path for _, path in found]

    squares = [sum(np.square(np.asarray(leaves[p], np.float64)).sum() for p in paths(name)) for name in names]
    return np.sqrt(np.array(squares))


def _sampled(logits: jax.Array) -> np.ndarray:
    return np.asarray(logits).transpose(0, 3, 1, 2)[:, :, 4::8, 4::8]
