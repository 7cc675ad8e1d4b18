"""Whole training iterations of SemiOVS on UniMatch, from stored views: losses, gradients, states, logits."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from semiovs_jax import methods, optim, sharding, train_step
from semiovs_jax.convert.deeplab import STUDENT_RULES, convert_student, infer_architecture
from semiovs_jax.convert.keys import find_rule, flatten
from semiovs_jax.labelers import trusted
from semiovs_jax.models import Functional
from semiovs_jax.train_state import TrainState
from tests.golden import Golden

# The optimizer settings that the reference's trainer does not take from its config (notes: momentum 0.9, decay 1e-4).
MOMENTUM, WEIGHT_DECAY, POWER = 0.9, 1e-4, 0.9
TERM_NAMES = {
    "u_s1": "loss_u_s1",
    "u_s2": "loss_u_s2",
    "u_fp": "loss_u_w_fp",
    "u_s1_ood": "loss_u_s1_ood",
    "u_s2_ood": "loss_u_s2_ood",
    "u_fp_ood": "loss_u_w_fp_ood",
}


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Runs every variant that the golden has tables for in this precision, each from the same weights."""
    dtype = jnp.float64 if double else jnp.float32
    meta, source = golden.meta, golden.state_dict()
    config = meta["config"]
    architecture = infer_architecture(source, dilate=config["replace_stride_with_dilation"], rates=config["dilations"])
    student, params, batch_stats = Functional.create(architecture.build(config["nclass"], rngs=nnx.Rngs(0)))
    params, batch_stats = convert_student(source, params, batch_stats, name=golden.path.name)
    params, batch_stats = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, batch_stats))

    ignore_index = config["criterion"]["kwargs"]["ignore_index"]
    views = [_views(golden, index, ignore_index, dtype) for index in meta["iters_index"]]
    probe = jnp.asarray(golden["probe"].transpose(0, 2, 3, 1), dtype)
    table = methods.make_method(
        ConfigDict(
            {
                "name": "unimatch",
                "ood": "ovs",
                "ood_weight": config["lambda"],
                "confidence_threshold": 0.0,
                "ovs_threshold": 0.0,
            }
        )
    )

    def optimizer_config(learning_rate: Any) -> SimpleNamespace:
        return SimpleNamespace(
            learning_rate=learning_rate,
            head_multiplier=config["lr_multi"],
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            power=POWER,
        )

    # Threshold and learning rate are arguments, so that the variants share one compilation.
    @jax.jit
    def step(state: TrainState, views: train_step.Views, threshold: jax.Array, rate: jax.Array) -> train_step.Update:
        method = dataclasses.replace(table, confidence_threshold=threshold)
        optimizer = optim.make_optimizer(optimizer_config(rate), meta["total_iters"])
        return train_step.update(state, views, student, method, optimizer, ignore_index)

    @jax.jit
    def evaluate(state: TrainState) -> jax.Array:
        return student.apply(state.params, state.batch_stats, probe, train=False)[0]

    outputs: dict[str, np.ndarray] = {}
    for variant in meta["variants"]:
        if not (double or variant["f32"]):
            continue
        prefix = variant["prefix"] + ("f64/" if double else "")
        rate = optimizer_config(variant["lr"])
        state = TrainState.create(params, batch_stats, optim.make_optimizer(rate, meta["total_iters"]))
        updates = []
        for given in views:
            updates.append(step(state, given, variant["conf_thresh"], variant["lr"]))
            state = updates[-1].state
        found = _losses(updates) | _first_iteration(updates[0], golden) | _final(golden, params, batch_stats, state)
        if not double:
            schedule = optim.learning_rate_schedule(rate, meta["total_iters"])
            rates = np.array([schedule(i) for i in range(len(views))], np.float64)
            found["lr"] = np.stack([rates, config["lr_multi"] * rates], axis=1)
        found["probe_logits_s"] = _strided(evaluate(state), 3)
        outputs |= {prefix + key: value for key, value in found.items() if prefix + key in golden}
    return outputs


def _views(golden: Golden, index: int, ignore_index: int, dtype: Any) -> train_step.Views:
    def stored(key: str) -> np.ndarray:
        return golden[f"in/{index}/{key}"]

    def image(key: str) -> jax.Array:
        return jnp.asarray(stored(key).transpose(0, 2, 3, 1), dtype)

    def keep(key: str) -> jax.Array:
        # Stored stream by stream; the step interleaves the streams.
        return sharding.interleave(*jnp.split(jnp.asarray(stored(key), bool), 3))

    streams = {"unlabeled": "u", "mix": "mix", "ood": "ood"}
    label = jnp.asarray(stored("mask_x"), jnp.int32)
    ood = jnp.asarray(stored("mask_u_ood"))
    valid = {name: jnp.asarray(stored(f"ignore_{short}") != ignore_index) for name, short in streams.items()}
    return train_step.Views(
        weak={"labeled": image("img_x")} | {name: image(f"img_{s}_w") for name, s in streams.items()},
        s1={name: image(f"img_{s}_s1") for name, s in streams.items()},
        s2={name: image(f"img_{s}_s2") for name, s in streams.items()},
        valid=valid | {"labeled": jnp.ones(label.shape, bool)},
        label=label,
        ovs=trusted(ood, jnp.ones(ood.shape), valid["ood"], ignore_index=ignore_index),
        box1=jnp.asarray(stored("cutmix_box1"), bool),
        box2=jnp.asarray(stored("cutmix_box2"), bool),
        keep=(keep("keep_c1"), keep("keep_c4")),
    )


def _losses(updates: list[train_step.Update]) -> dict[str, np.ndarray]:
    outcomes = [update.outcome for update in updates]
    found = {
        "total": np.array([update.loss for update in updates]),
        "loss_x": np.array([outcome.supervised for outcome in outcomes]),
        "mask_ratio": np.array([outcome.confident for outcome in outcomes]),
    }
    for ours, theirs in TERM_NAMES.items():
        terms = [outcome.terms[ours] for outcome in outcomes]
        found[theirs] = np.array([term.loss for term in terms])
        found[f"count/{theirs}"] = np.array([[term.passed, term.valid] for term in terms], np.int64)
    return found


def _first_iteration(update: train_step.Update, golden: Golden) -> dict[str, np.ndarray]:
    predictions = update.outcome.predictions
    strong = {name: [predictions.s1[name], predictions.s2[name]] for name in ("unlabeled", "ood")}
    weak = [predictions.labeled, predictions.weak["unlabeled"], predictions.weak["ood"]]
    fp = [predictions.labeled_fp, predictions.fp["unlabeled"], predictions.fp["ood"]]
    gradient = _by_name(golden.meta["params"], update.gradient)
    return {
        "it0/grad_norm": _norms(gradient),
        "it0/pred_u_w_mix_s": _strided(predictions.partner["mix"], 8),
        "it0/preds_s": _strided(jnp.concatenate(weak), 8),
        "it0/preds_fp_s": _strided(jnp.concatenate(fp), 8),
        "it0/pred_s_s": _strided(jnp.concatenate(strong["unlabeled"]), 8),
        "it0/pred_s_ood_s": _strided(jnp.concatenate(strong["ood"]), 8),
    }


def _final(golden: Golden, params: Any, batch_stats: Any, state: TrainState) -> dict[str, np.ndarray]:
    def table(params: Any, batch_stats: Any, forwards: int) -> list[np.ndarray]:
        leaves = flatten(params) | flatten(batch_stats)
        return _by_name(golden.meta["tensors"], leaves, counter=np.asarray(forwards))

    # Each iteration has three forwards in train mode, each counted by torch's num_batches_tracked.
    first, last = table(params, batch_stats, 0), table(state.params, state.batch_stats, 3 * int(state.step))
    _, (momentum,), _ = state.opt_state
    return {
        "final/norm": _norms(last),
        "final/delta_norm": _norms([b - a for a, b in zip(first, last, strict=True)]),
        "final/momentum_norm": _norms(_by_name(golden.meta["params"], momentum)),
    }


def _by_name(names: list[str], tree: Any, counter: np.ndarray | None = None) -> list[np.ndarray]:
    """Leaves of a pure dict in the order of published names; `counter` stands for those we do not keep."""
    leaves, found = flatten(tree), []
    for name in names:
        rule, path = find_rule(name, STUDENT_RULES) or (None, None)
        assert rule is not None, name
        found.append(counter if path is None else np.asarray(leaves[path]))
    return found


def _norms(tensors: list[np.ndarray]) -> np.ndarray:
    return np.array([np.sqrt(np.square(tensor.astype(np.float64)).sum()) for tensor in tensors])


def _strided(logits: jax.Array, stride: int) -> np.ndarray:
    return np.asarray(logits).transpose(0, 3, 1, 2)[:, :, ::stride, ::stride]
