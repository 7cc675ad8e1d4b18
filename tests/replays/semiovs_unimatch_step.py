"""Whole training iterations of SemiOVS on UniMatch or PrevMatch from stored views: losses, gradients, states."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from semiovs_jax import methods, optim, train_step
from semiovs_jax.labelers import View
from semiovs_jax.labelers.ovs import CachedLabels
from semiovs_jax.labelers.snapshots import SnapshotDraw, Snapshots, SnapshotState, ensemble_logits, label_by_draw
from semiovs_jax.models import Functional
from semiovs_jax.models.deeplab.params import STUDENT_RULES, convert_student, infer_architecture
from semiovs_jax.runtime import sharding
from semiovs_jax.train_state import TrainState
from semiovs_jax.weights.keys import find_rule, flatten
from tests.golden import Golden

# The optimizer settings that the reference's trainer does not take from its config (notes: momentum 0.9, decay 1e-4).
MOMENTUM, WEIGHT_DECAY, POWER = 0.9, 1e-4, 0.9
DRAWS = 3  # snapshots that label a batch at most, likewise
TERM_NAMES = {
    "u_s1": "loss_u_s1",
    "u_s2": "loss_u_s2",
    "u_fp": "loss_u_w_fp",
    "u_s1_ood": "loss_u_s1_ood",
    "u_s2_ood": "loss_u_s2_ood",
    "u_fp_ood": "loss_u_w_fp_ood",
    "u_s1_prev": "loss_u_s1_prev",
    "u_s2_prev": "loss_u_s2_prev",
    "u_fp_prev": "loss_u_w_fp_prev",
}


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Runs every variant that the golden has tables for in this precision, each from the same weights."""
    dtype = jnp.float64 if double else jnp.float32
    meta, source = golden.meta, golden.state_dict()
    config = meta["config"]
    architecture = infer_architecture(source, dilate=config["replace_stride_with_dilation"], rates=config["dilations"])
    model = architecture.build(config["nclass"], rngs=nnx.Rngs(0))
    student, params, batch_stats = Functional.create(model)

    def weights(source: dict[str, np.ndarray]) -> tuple[Any, Any]:
        converted = convert_student(source, params, batch_stats, name=golden.path.name)
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), converted)

    first = weights(source)
    snapshots = [weights(golden.state_dict(seed)) for seed in meta.get("prev_bank_fill_seeds", ())]
    held = _snapshots(*first, snapshots) if snapshots else None

    ignore_index = config["criterion"]["kwargs"]["ignore_index"]
    views = [_views(golden, index, ignore_index, dtype) for index in range(len(meta["iters_index"]))]
    labels = [_labels(golden, index, given, held, student, ignore_index) for index, given in enumerate(views)]
    probe = jnp.asarray(golden["probe"].transpose(0, 2, 3, 1), dtype)
    table = methods.make_method(_method_config(meta))

    # Thresholds and learning rate are arguments, so that the variants share one compilation.
    @jax.jit
    def step(
        state: TrainState, views: train_step.Views, labels: train_step.Labels, variant: dict[str, jax.Array]
    ) -> train_step.Update:
        return train_step.update(state, views, labels, spec(variant))

    def spec(variant: dict[str, Any]) -> train_step.StepSpec:
        gates = {"student": "conf_thresh", "ovs": "conf_thresh", "snapshots": "prev_conf_thresh"}
        terms = tuple(dataclasses.replace(term, threshold=variant[gates[term.labeler]]) for term in table.terms)
        return train_step.StepSpec(
            student=student,
            perturbed_channels=model.perturbed_channels,
            method=dataclasses.replace(table, terms=terms),
            labelers={"snapshots": Snapshots(student, len(snapshots), DRAWS)} if snapshots else {},
            optimizer=optim.make_optimizer(_optim_config(meta, variant), meta["total_iters"], model.parameter_groups),
            ignore_index=ignore_index,
            seed=0,
            steps_per_epoch=meta["total_iters"] // config["epochs"],
            total_steps=meta["total_iters"],
        )

    @jax.jit
    def evaluate(state: TrainState) -> jax.Array:
        return student.apply(state.params, state.batch_stats, probe, train=False)[0]

    outputs: dict[str, np.ndarray] = {}
    for variant in meta["variants"]:
        if not (double or variant["f32"]):
            continue
        prefix = variant["prefix"] + ("f64/" if double else "")
        values = {key: variant[key] for key in ("conf_thresh", "prev_conf_thresh", "lr") if key in variant}
        state = TrainState.create(*first, spec(values).optimizer, {})
        if held is not None:
            state = dataclasses.replace(state, labelers={"snapshots": held})
        updates = []
        for count, index, given, known in zip(_schedule_counts(meta), meta["iters_index"], views, labels, strict=True):
            opt_state = optax.tree_utils.tree_set(state.opt_state, count=jnp.int32(count))
            state = dataclasses.replace(state, step=jnp.int32(index), opt_state=opt_state)
            updates.append(step(state, given, known, values))
            state = updates[-1].state
        found = _losses(updates) | _first_iteration(updates[0], golden)
        found |= _final(golden, *first, state, 3 * len(updates))
        if held is not None:
            found["it0/pred_prev_s"] = _strided(_snapshot_logits(golden, 0, views[0], held, student), 8)
        if not double:
            rates = optim.learning_rate_schedules(_optim_config(meta, values), meta["total_iters"])
            by_group = [[float(rates[group](i)) for group in ("backbone", "head")] for i in _schedule_counts(meta)]
            found["lr"] = np.array(by_group)
        found["probe_logits_s"] = _strided(evaluate(state), 3)
        outputs |= {prefix + key: value for key, value in found.items() if prefix + key in golden}
    return outputs


def _method_config(meta: dict[str, Any]) -> ConfigDict:
    return ConfigDict(
        {
            "name": "prevmatch" if "prev_bank_fill_seeds" in meta else "unimatch",
            "ood": "ovs",
            "ood_weight": meta["config"]["lambda"],
            "confidence_threshold": 0.0,
            "ovs_threshold": 0.0,
            "snapshots": {
                "capacity": len(meta.get("prev_bank_fill_seeds", "-")),
                "draws": DRAWS,
                "confidence_threshold": 0.0,
                "gate": meta.get("prev_conf_mode", "pixelwise"),
            },
        }
    )


def _optim_config(meta: dict[str, Any], variant: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(
        name="sgd",
        learning_rate=variant["lr"],
        backbone_multiplier=1.0,
        head_multiplier=meta["config"]["lr_multi"],
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        power=POWER,
    )


def _schedule_counts(meta: dict[str, Any]) -> list[int]:
    """Updates that the learning rate counts as done: the first stored iteration uses the base rate wherever it is."""
    return [0, *meta["iters_index"][1:]]


def _snapshots(params: Any, batch_stats: Any, snapshots: list[tuple[Any, Any]]) -> SnapshotState:
    held = SnapshotState.create(params, batch_stats, len(snapshots))
    for number, snapshot in enumerate(snapshots):
        held = held.offer(*snapshot, jnp.float32(number + 1))
    return held


def _draw(golden: Golden, index: int, dtype: Any) -> SnapshotDraw:
    slots, weights = (golden[f"in/{index}/prev_{key}"] for key in ("select", "weights"))
    unused = DRAWS - len(slots)
    return SnapshotDraw(
        jnp.asarray(np.pad(slots, (0, unused)), jnp.int32),
        jnp.asarray(np.pad(weights, (0, unused)), dtype),
        jnp.int32(len(slots)),
    )


_label_by_draw = jax.jit(label_by_draw, static_argnames="student")


def _labels(
    golden: Golden,
    index: int,
    views: train_step.Views,
    held: SnapshotState | None,
    student: Functional,
    ignore_index: int,
) -> train_step.Labels:
    """The OVS's stored labels, and those of the stored draw of snapshots."""
    ood = jnp.asarray(golden[f"in/{index}/mask_u_ood"])
    given = {
        name: View(views.weak[name], views.weak[name], views.valid[name], ood if name == "ood" else None)
        for name in ("unlabeled", "mix", "ood")
    }
    ovs = CachedLabels(ignore_index).label((), (), {"ood": given.pop("ood")}, jax.random.key(0))
    labels = {("ovs", "ood"): ovs["ood"]}
    if held is not None:
        draw = _draw(golden, index, views.weak["unlabeled"].dtype)
        found = _label_by_draw(held, draw, student=student, views=given)
        labels |= {("snapshots", name): label for name, label in found.items()}
    return labels


def _snapshot_logits(
    golden: Golden, index: int, views: train_step.Views, held: SnapshotState, student: Functional
) -> jax.Array:
    images = jnp.concatenate([views.weak["unlabeled"], views.weak["mix"]])
    return jax.jit(functools.partial(ensemble_logits, student=student))(
        held, _draw(golden, index, images.dtype), image=images
    )


def _views(golden: Golden, index: int, ignore_index: int, dtype: Any) -> train_step.Views:
    def stored(key: str) -> np.ndarray:
        return golden[f"in/{index}/{key}"]

    def image(key: str) -> jax.Array:
        return jnp.asarray(stored(key).transpose(0, 2, 3, 1), dtype)

    def masks(key: str) -> jax.Array:
        # Stored stream by stream; the step interleaves the streams.
        kept = sharding.interleave(*jnp.split(jnp.asarray(stored(key), jnp.float32), 3))
        return jnp.stack([jnp.ones_like(kept), 2 * kept])

    streams = {"unlabeled": "u", "mix": "mix", "ood": "ood"}
    label = jnp.asarray(stored("mask_x"), jnp.int32)
    valid = {name: jnp.asarray(stored(f"ignore_{short}") != ignore_index) for name, short in streams.items()}
    return train_step.Views(
        weak={"labeled": image("img_x")} | {name: image(f"img_{s}_w") for name, s in streams.items()},
        s1={name: image(f"img_{s}_s1") for name, s in streams.items()},
        s2={name: image(f"img_{s}_s2") for name, s in streams.items()},
        valid=valid | {"labeled": jnp.ones(label.shape, bool)},
        label=label,
        box1=jnp.asarray(stored("cutmix_box1"), bool),
        box2=jnp.asarray(stored("cutmix_box2"), bool),
        weak_masks=(masks("keep_c1"), masks("keep_c4")),
    )


def _losses(updates: list[train_step.Update]) -> dict[str, np.ndarray]:
    outcomes = [update.outcome for update in updates]
    found = {
        "total": np.array([update.loss for update in updates]),
        "loss_x": np.array([outcome.supervised for outcome in outcomes]),
    }
    for ours, theirs in (("student", "mask_ratio"), ("snapshots", "mask_ratio_prev")):
        if ours in outcomes[0].confident:
            found[theirs] = np.array([outcome.confident[ours] for outcome in outcomes])
    for ours, theirs in TERM_NAMES.items():
        if ours not in outcomes[0].terms:
            continue
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
        "it0/pred_u_w_mix_s": _strided(predictions.frozen["mix"], 8),
        "it0/preds_s": _strided(jnp.concatenate(weak), 8),
        "it0/preds_fp_s": _strided(jnp.concatenate(fp), 8),
        "it0/pred_s_s": _strided(jnp.concatenate(strong["unlabeled"]), 8),
        "it0/pred_s_ood_s": _strided(jnp.concatenate(strong["ood"]), 8),
    }


def _final(golden: Golden, params: Any, batch_stats: Any, state: TrainState, forwards: int) -> dict[str, np.ndarray]:
    def table(params: Any, batch_stats: Any, forwards: int) -> list[np.ndarray]:
        leaves = flatten(params) | flatten(batch_stats)
        return _by_name(golden.meta["tensors"], leaves, counter=np.asarray(forwards))

    # Each iteration has three forwards in train mode, each counted by torch's num_batches_tracked.
    first, last = table(params, batch_stats, 0), table(state.params, state.batch_stats, forwards)
    return {
        "final/norm": _norms(last),
        "final/delta_norm": _norms([b - a for a, b in zip(first, last, strict=True)]),
        "final/momentum_norm": _norms(_by_name(golden.meta["params"], _momentum(state.opt_state))),
    }


def _momentum(opt_state: Any) -> Any:
    """The momentum of all groups of parameters in one tree."""
    unused = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    groups = [trace for _, trace in optax.tree_utils.tree_get_all_with_path(opt_state, "trace")]
    return functools.reduce(lambda a, b: jax.tree.map(lambda x, y: y if unused(x) else x, a, b, is_leaf=unused), groups)


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
