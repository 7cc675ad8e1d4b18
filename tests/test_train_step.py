import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from semiovs_jax import methods, models, optim, train_step
from semiovs_jax.labelers import Labeler
from semiovs_jax.labelers.ovs import CachedLabels, OnlineLabels
from semiovs_jax.labelers.snapshots import Snapshots
from semiovs_jax.models.functional import Functional
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.runtime import sharding
from semiovs_jax.train_state import TrainState

CLASSES, SIZE, BATCH, IGNORE = 5, 33, 8, 255
EPOCH, STEPS = 2, 10


def _batch(method: methods.Method, size: int = SIZE) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)

    def stream(labeled: bool) -> dict[str, np.ndarray]:
        valid = np.ones((BATCH, size, size), bool)
        valid[:, -3:] = False
        arrays = {"image": rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8), "valid": valid}
        if labeled:
            label = rng.integers(0, CLASSES, (BATCH, size, size), dtype=np.uint8)
            label[:, :2] = IGNORE
            arrays["label"] = label
        return arrays

    def ovs_labeled() -> dict[str, np.ndarray]:
        return stream(True) | {"confidence": rng.integers(0, 256, (BATCH, size, size), dtype=np.uint8)}

    return {name: ovs_labeled() if name == "ood" else stream(name == "labeled") for name in method.streams}


def _setup(
    name: str = "unimatch", ood: str = "ovs", threshold: float = 0.3, dtype: str = "float32", ovs=None
) -> tuple[train_step.StepSpec, TrainState]:
    config = common.semiovs_unimatch()
    config.method.update({"name": name, "ood": ood, "confidence_threshold": threshold})
    config.method.snapshots.update({"confidence_threshold": threshold, "capacity": 3})
    config.optim.learning_rate = 0.01
    method = methods.make_method(config.method)
    architecture = {"backbone": "resnet_tiny", "dtype": dtype, "remat": "none"}
    model = models.build_student(architecture, CLASSES, image_size=SIZE, rngs=nnx.Rngs(0))
    student, params, batch_stats = Functional.create(model)
    optimizer = optim.make_optimizer(config.optim, STEPS, model.parameter_groups)
    labelers: dict[str, Labeler] = {
        "snapshots": Snapshots(student, 3, 3),
        "ovs": OnlineLabels(ovs, IGNORE) if ovs else CachedLabels(IGNORE),
    }
    labelers = {name: labelers[name] for name in method.labelers}
    spec = train_step.StepSpec(student, model.perturbed_channels, method, labelers, optimizer, IGNORE, 3, EPOCH, STEPS)
    return spec, TrainState.create(params, batch_stats, optimizer, labelers)


def _weights(spec: train_step.StepSpec) -> dict:
    return {name: labeler.weights for name, labeler in spec.labelers.items()}


def _views(spec: train_step.StepSpec, batch: dict, step: int = 0) -> train_step.Views:
    return train_step.make_views(spec.key(jnp.int32(step)), batch, spec.method, spec.perturbed_channels)


def _labels(spec: train_step.StepSpec, batch: dict, state: TrainState) -> train_step.Labels:
    key = spec.key(state.step)
    return train_step.label_views(key, batch, _views(spec, batch, state.step), state, _weights(spec), spec)


def _run(spec: train_step.StepSpec, state: TrainState, devices: int, steps: int, size: int, fsdp: int = 1):
    mesh = sharding.share_state(sharding.make_mesh(jax.devices()[:devices]), fsdp)
    step = train_step.make_train_step(spec, mesh)
    state = sharding.put_state(state, mesh)
    expected = [leaf.sharding for leaf in jax.tree.leaves(state)]
    batch = sharding.shard_batch(_batch(spec.method, size), mesh)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch, _weights(spec))
        losses.append(jax.device_get(metrics))
    found = zip(jax.tree.leaves(state), expected, strict=True)
    assert all(leaf.sharding.is_equivalent_to(own, leaf.ndim) for leaf, own in found)
    return jax.device_get(state), losses, _bytes(state)


def _bytes(state: TrainState) -> int:
    """On the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


def _with_snapshots(state: TrainState, count: int) -> TrainState:
    """The state with `count` different snapshots."""
    for number in range(1, count + 1):
        shifted = jax.tree.map(lambda leaf, n=number: leaf * (1 + 0.1 * n), state.params)
        held = state.labelers["snapshots"].offer(shifted, state.batch_stats, jnp.float32(number))
        state = dataclasses.replace(state, labelers={"snapshots": held})
    return state


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ood", "fsdp"), [("prevmatch", "ovs", 1), ("supervised", "none", 4)])
def test_eight_devices_equal_one_whether_they_share_the_state_or_not(name: str, ood: str, fsdp: int):
    """PrevMatch has all of UniMatch's terms. In float64, where what is more than rounding would show.

    The images are small: convolutions in float64 take long here.
    """
    with jax.enable_x64(True):
        spec, state = _setup(name, ood, threshold=0.25)  # five classes: pixels of each term pass
        state = dataclasses.replace(state, step=jnp.int32(4))  # mu is largest there
        state = _with_snapshots(state, 2) if "snapshots" in spec.labelers else state
        state = jax.tree.map(lambda leaf: np.float64(leaf) if leaf.dtype == np.float32 else leaf, jax.device_get(state))
        one, losses_one, bytes_one = _run(spec, state, devices=1, steps=3, size=17)
        eight, losses_eight, bytes_eight = _run(spec, state, devices=8, steps=3, size=17, fsdp=fsdp)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    assert jax.tree.leaves(eight.params)[0].dtype == np.float64
    assert all(losses[f"loss_{term.name}"] > 0 for losses in losses_one for term in spec.method.terms)
    jax.tree.map(close, losses_one, losses_eight)
    jax.tree.map(close, (one.params, one.batch_stats), (eight.params, eight.batch_stats))
    assert bytes_eight / bytes_one < (0.35 if fsdp == 4 else 1.01), "a fourth of all but small arrays"


@pytest.mark.parametrize(("name", "ood"), [("supervised", "none"), ("unimatch", "none")])
def test_every_method_takes_steps_and_compiles_once(name: str, ood: str):
    spec, state = _setup(name, ood)
    mesh = sharding.make_mesh(jax.devices()[:1])
    step = train_step.make_train_step(spec, mesh)
    state = jax.device_put(state, sharding.replicated(mesh))
    batch = sharding.shard_batch(_batch(spec.method), mesh)
    before = jax.device_get(state.params)
    for _ in range(2):
        state, metrics = step(state, batch, _weights(spec))
    assert step._cache_size() == 1
    assert int(state.step) == 2
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    assert {f"loss_{term.name}" for term in spec.method.terms} <= set(metrics)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved))


def test_prevmatch_compiles_once_while_snapshots_fill_their_places_and_turn_over():
    spec, state = _setup("prevmatch", "none", threshold=0.0)
    mesh = sharding.make_mesh(jax.devices()[:1])
    step = train_step.make_train_step(spec, mesh)
    offer = train_step.make_after_evaluation(spec, mesh)
    state = jax.device_put(dataclasses.replace(state, step=jnp.int32(2)), sharding.replicated(mesh))
    batch = sharding.shard_batch(_batch(spec.method), mesh)
    previous = []
    for number in range(5):
        state, metrics = step(state, batch, _weights(spec))
        previous.append(jax.device_get({key: v for key, v in metrics.items() if "prev" in key or "snapshots" in key}))
        state = offer(state, 0.1 * (number + 1))
    assert step._cache_size() == 1
    assert offer._cache_size() == 1
    assert int(state.labelers["snapshots"].pushed) == 5
    assert int(state.labelers["snapshots"].size) == 3
    assert all(value == 0 for value in previous[0].values())
    for later in previous[1:]:
        assert later["mask_ratio_snapshots"] > 0
        assert all(np.isfinite(value) for value in later.values())
    assert len({float(later["loss_u_fp_prev"]) for later in previous}) == 5


def test_the_snapshots_count_in_the_total_only_when_there_are_some():
    spec, state = _setup("prevmatch", "none", threshold=0.0)
    state = dataclasses.replace(state, step=jnp.int32(4))  # epoch 2 of 5: mu is 1
    full = _with_snapshots(state, 2)
    batch = _batch(spec.method)

    @jax.jit
    def total(given: TrainState):
        views, labels = _views(spec, batch, given.step), _labels(spec, batch, given)
        return train_step.total_loss(given.params, given.batch_stats, views, labels, spec.term_weights(given), spec)

    for given, divisor in ((state, 2), (full, 3)):
        loss, outcome = total(given)
        parts = {name: term.loss for name, term in outcome.terms.items()}
        own = outcome.supervised + 0.25 * parts["u_s1"] + 0.25 * parts["u_s2"] + 0.5 * parts["u_fp"]
        snapshots = 0.25 * parts["u_s1_prev"] + 0.25 * parts["u_s2_prev"] + 0.5 * parts["u_fp_prev"]
        assert (float(snapshots) > 0) == (given is full)
        np.testing.assert_allclose(loss, (own + snapshots) / divisor, rtol=1e-6)


def test_total_is_the_weighted_mean_of_the_parts():
    spec, state = _setup()
    batch = _batch(spec.method)
    loss, outcome = jax.jit(lambda p, s, v, t: train_step.total_loss(p, s, v, t, spec.term_weights(state), spec))(
        state.params, state.batch_stats, _views(spec, batch), _labels(spec, batch, state)
    )
    parts = sum(term.weight * outcome.terms[term.name].loss for term in spec.method.terms)
    np.testing.assert_allclose(loss, (outcome.supervised + parts) / 3, rtol=1e-6)
    # Every OVS pixel counts but the invalid ones: the last three rows, and the first two, which are ignored.
    assert int(outcome.terms["u_fp_ood"].valid) == BATCH * (SIZE - 5) * SIZE


@pytest.mark.parametrize("gate", ["pixelwise", "pixelavg"])
def test_each_term_is_gated_and_averaged_as_its_row_says(gate: str):
    config = common.semiovs_unimatch().method
    config.update_from_flattened_dict({"name": "prevmatch", "ood": "none", "snapshots.gate": gate})
    previous = next(term for term in methods.make_method(config).terms if term.name == "u_fp_prev")
    config.name = "semivl"
    dense = next(term for term in methods.make_method(config).terms if term.name == "u_fp_mc")

    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 4, 4, CLASSES)), jnp.float32)
    label = jnp.asarray(rng.integers(0, CLASSES, (2, 4, 4)))
    confidence = jnp.asarray(rng.uniform(0.8, 1, (2, 4, 4)), jnp.float32)
    valid = jnp.asarray(rng.random((2, 4, 4)) < 0.7)
    found = PseudoLabel(label, confidence, valid)
    predictions = train_step.Predictions(logits, fp={"unlabeled": logits})
    empty = jnp.zeros((0, 4, 4), bool)
    views = train_step.Views({}, {}, {}, {}, label, empty, empty)
    values = train_step.evaluate_terms(
        methods.Method("test", (previous, dense)),
        views,
        predictions,
        {("snapshots", "unlabeled"): found, ("maskclip", "unlabeled"): found},
    )

    loss = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(label)[..., None], axis=-1)[..., 0]
    kept = np.asarray(valid & (confidence >= 0.9))
    if gate == "pixelwise":
        expected = (loss * kept).sum()
    else:
        weight = (confidence * valid).sum((1, 2)) / valid.sum((1, 2))
        expected = ((loss * valid).sum((1, 2)) * weight).sum()
    np.testing.assert_allclose(values["u_fp_prev"].loss, expected / valid.sum(), rtol=1e-5)
    np.testing.assert_allclose(values["u_fp_mc"].loss, (loss * kept).sum() / valid.size, rtol=1e-5)
    assert (int(values["u_fp_mc"].passed), int(values["u_fp_mc"].valid)) == (kept.sum(), valid.sum())


class _ConstantOVS:
    """Labels everything with one class; invalid in the first row."""

    weights = np.int32(2)
    num_classes, image_size, fingerprint = CLASSES, SIZE, "constant"

    def label(self, weights, image, *, label_size, size=None):
        shape = (image.shape[0], *label_size)
        valid = jnp.ones(shape, bool).at[:, 0].set(False)
        return PseudoLabel(jnp.full(shape, weights, jnp.int32), jnp.full(shape, 0.5), valid)


def test_online_labels_come_from_the_ovs_with_confidence_one():
    spec, state = _setup(ovs=_ConstantOVS())
    batch = _batch(spec.method)
    del batch["ood"]["label"], batch["ood"]["confidence"]
    found = _labels(spec, batch, state)["ovs", "ood"]
    np.testing.assert_array_equal(found.label, 2)
    np.testing.assert_array_equal(found.confidence, 1.0)
    expected = batch["ood"]["valid"].copy()
    expected[:, 0] = False
    np.testing.assert_array_equal(found.valid, expected)


def test_without_a_threshold_cached_labels_need_no_confidence():
    spec, state = _setup()
    batch = _batch(spec.method)
    del batch["ood"]["confidence"]
    found = _labels(spec, batch, state)["ovs", "ood"]
    np.testing.assert_array_equal(found.label[found.valid], batch["ood"]["label"][found.valid])
    np.testing.assert_array_equal(found.confidence, 1.0)


def test_the_ovs_threshold_counts_for_cached_and_online_labels():
    spec, state = _setup()
    batch = _batch(spec.method)
    batch["ood"]["confidence"][:] = 255
    batch["ood"]["confidence"][:, :, :4] = 100
    found = _labels(spec._replace(labelers={"ovs": CachedLabels(IGNORE, 0.5)}), batch, state)["ovs", "ood"]
    np.testing.assert_array_equal(found.confidence, batch["ood"]["confidence"] == 255)
    for threshold, confidence in ((0.5, 1.0), (0.51, 0.0)):  # the model's confidence is 0.5
        online = spec._replace(labelers={"ovs": OnlineLabels(_ConstantOVS(), IGNORE, threshold)})
        np.testing.assert_array_equal(_labels(online, batch, state)["ovs", "ood"].confidence, confidence)


def test_views_depend_on_seed_and_step_alone():
    spec, _ = _setup()
    batch = _batch(spec.method)
    first, again, later = (_views(spec, batch, step) for step in (4, 4, 5))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.s1["ood"] != later.s1["ood"])
    assert np.any(first.s1["unlabeled"] != first.s2["unlabeled"])


class _Fragile(nnx.Module):
    """A linear student with a running mean, whose logits are NaN on white images."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.linspace(-1, 1, 3 * CLASSES).reshape(3, CLASSES))
        self.mean = nnx.BatchStat(jnp.zeros(3))

    def set_view(self, use_running_average: bool | None = None) -> None:
        pass

    def __call__(self, x: jax.Array, channel_masks: None = None) -> jax.Array:
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean((0, 1, 2))
        return x @ self.kernel[...] + jnp.where(x.mean() > 2, jnp.nan, 0)


def _fragile_setup(optimizer: str, skips: bool) -> tuple[train_step.StepSpec, TrainState]:
    config = common.semiovs_unimatch()
    config.method.update({"name": "supervised", "ood": "none"})
    config.optim.update({"name": optimizer, "learning_rate": 0.01})
    student, params, batch_stats = Functional.create(_Fragile())
    groups = lambda params: {"kernel": "head"}  # noqa: E731
    transformation = optim.make_optimizer(config.optim, STEPS, groups)
    spec = train_step.StepSpec(
        student, (), methods.make_method(config.method), {}, transformation, IGNORE, 3, EPOCH, STEPS,
        optim.learning_rate_schedules(config.optim, STEPS), groups, skips,
    )  # fmt: skip
    return spec, TrainState.create(params, batch_stats, transformation, {})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("skips", [False, True])
def test_a_bad_update_is_skipped_if_asked_for_and_the_schedule_goes_on(optimizer: str, skips: bool):
    spec, state = _fragile_setup(optimizer, skips)
    mesh = sharding.make_mesh(jax.devices()[:1])
    step = train_step.make_train_step(spec, mesh)
    state = jax.device_put(state, sharding.replicated(mesh))
    good = _batch(spec.method)
    white = {"labeled": good["labeled"] | {"image": np.full_like(good["labeled"]["image"], 255)}}
    rates = []
    for batch in (good, good, good):
        state, metrics = step(state, batch, {})
        rates.append(float(metrics["learning_rate_head"]))
    before = jax.device_get(state)
    state, metrics = step(state, white, {})
    rates.append(float(metrics["learning_rate_head"]))
    after = jax.device_get(state)
    assert not np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["gradient_norm"])
    assert after.step == 4
    assert np.isfinite(after.params["kernel"]).all() == skips
    if skips:
        expected = optax.tree.set(before.opt_state, _is_of_schedule, count=4)
        jax.tree.map(np.testing.assert_array_equal, after, before.replace(step=np.int32(4), opt_state=expected))
        state, metrics = step(state, good, {})
        rates.append(float(metrics["learning_rate_head"]))
        assert np.isfinite(metrics["gradient_norm"])
    schedule = spec.learning_rates["head"]
    assert rates == pytest.approx([float(schedule(update)) for update in range(len(rates))], rel=1e-6)


def _is_of_schedule(path: tuple, value: object) -> bool:
    return any(getattr(entry, "tuple_name", None) == "ScaleByScheduleState" for entry in path)


def test_a_skipped_update_leaves_the_labelers():
    old = TrainState(jnp.int32(1), {}, {}, (), {"ema": jnp.ones(2)})
    new = TrainState(jnp.int32(2), {}, {}, (), {"ema": jnp.zeros(2)})
    for wanted, expected in ((True, 0), (False, 1)):
        chosen = train_step.skip_unless(jnp.bool_(wanted), old, new)
        np.testing.assert_array_equal(chosen.labelers["ema"], expected)
        assert chosen.step == 2


def test_the_gradient_norm_is_that_of_trained_parameters():
    spec, _ = _fragile_setup("sgd", skips=False)
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([1e6]), "c": jnp.array([4.0])}
    groups = {"a": "backbone", "b": "frozen", "c": "head"}
    assert spec._replace(parameter_groups=lambda params: groups).gradient_norm(gradient) == 5


def test_a_batch_without_a_valid_pixel_has_a_finite_loss():
    spec, state = _setup("supervised", "none")
    batch = _batch(spec.method)
    batch["labeled"]["label"][:] = IGNORE
    loss, _ = train_step.total_loss(state.params, state.batch_stats, _views(spec, batch), {}, {}, spec)
    assert float(loss) == 0.0
