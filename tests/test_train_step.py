import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from semiovs_jax import methods, models, optim, sharding, train_step
from semiovs_jax.labelers import PseudoLabel
from semiovs_jax.models.functional import Functional
from semiovs_jax.train_state import TrainState

CLASSES, SIZE, BATCH, IGNORE = 5, 33, 8, 255
OPTIM = ConfigDict(
    {"learning_rate": 0.01, "head_multiplier": 10.0, "momentum": 0.9, "weight_decay": 1e-4, "power": 0.9}
)


def _batch(method: methods.Method) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)

    def stream(labeled: bool) -> dict[str, np.ndarray]:
        valid = np.ones((BATCH, SIZE, SIZE), bool)
        valid[:, -3:] = False
        arrays = {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8), "valid": valid}
        if labeled:
            label = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE), dtype=np.uint8)
            label[:, :2] = IGNORE
            arrays["label"] = label
        return arrays

    def ovs_labeled() -> dict[str, np.ndarray]:
        return stream(True) | {"confidence": rng.integers(0, 256, (BATCH, SIZE, SIZE), dtype=np.uint8)}

    return {name: ovs_labeled() if name == "ood" else stream(name == "labeled") for name in method.streams}


def _setup(
    name: str = "unimatch", ood: str = "ovs", threshold: float = 0.3, dtype: str = "float32", ovs=None
) -> tuple[train_step.Recipe, TrainState]:
    config = {"name": name, "ood": ood, "ood_weight": 1.0, "confidence_threshold": threshold, "ovs_threshold": 0.0}
    method = methods.make_method(ConfigDict(config))
    architecture = {"backbone": "resnet_tiny", "dtype": dtype, "remat": False}
    model = models.build_student(architecture, CLASSES, image_size=SIZE, rngs=nnx.Rngs(0))
    student, params, batch_stats = Functional.create(model)
    optimizer = optim.make_optimizer(OPTIM, total_steps=10)
    recipe = train_step.Recipe(student, model.perturbed_channels, method, optimizer, IGNORE, seed=3, ovs=ovs)
    return recipe, TrainState.create(params, batch_stats, optimizer)


def _run(recipe: train_step.Recipe, state: TrainState, devices: int, steps: int):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    step = train_step.make_train_step(recipe, mesh)
    state = jax.device_put(state, sharding.replicated(mesh))
    batch = sharding.shard_batch(_batch(recipe.method), mesh)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch, None)
        losses.append(jax.device_get(metrics))
    return jax.device_get(state), losses


@pytest.mark.slow
def test_eight_devices_equal_one():
    recipe, state = _setup()
    state = jax.device_get(state)  # the step donates what it is given
    one, losses_one = _run(recipe, state, devices=1, steps=3)
    eight, losses_eight = _run(recipe, state, devices=8, steps=3)
    for a, b in zip(losses_one, losses_eight, strict=True):
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5, err_msg=key)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        (one.params, one.batch_stats),
        (eight.params, eight.batch_stats),
    )


@pytest.mark.parametrize(("name", "ood"), [("supervised", "none"), ("unimatch", "none")])
def test_every_method_takes_steps_and_compiles_once(name: str, ood: str):
    recipe, state = _setup(name, ood)
    mesh = sharding.make_mesh(jax.devices()[:1])
    step = train_step.make_train_step(recipe, mesh)
    state = jax.device_put(state, sharding.replicated(mesh))
    batch = sharding.shard_batch(_batch(recipe.method), mesh)
    before = jax.device_get(state.params)
    for _ in range(2):
        state, metrics = step(state, batch, None)
    assert step._cache_size() == 1
    assert int(state.step) == 2
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    assert {f"loss_{term.name}" for term in recipe.method.terms} <= set(metrics)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved))


def test_total_is_the_weighted_mean_of_the_parts():
    recipe, state = _setup()
    views = recipe.views(jnp.zeros((), jnp.int32), _batch(recipe.method), None)
    loss, outcome = jax.jit(lambda p, s, v: train_step.total_loss(p, s, v, recipe.student, recipe.method, IGNORE))(
        state.params, state.batch_stats, views
    )
    parts = sum(term.weight * outcome.terms[term.name].loss for term in recipe.method.terms)
    np.testing.assert_allclose(loss, (outcome.supervised + parts) / 3, rtol=1e-6)
    # Every OVS pixel counts but the invalid ones: the last three rows, and the first two, which are ignored.
    assert int(outcome.terms["u_fp_ood"].valid) == BATCH * (SIZE - 5) * SIZE


class _ConstantOVS:
    """Labels everything with one class; invalid in the first row."""

    weights = np.int32(2)
    num_classes, image_size, fingerprint = CLASSES, SIZE, "constant"

    def label(self, weights, image, *, canvas, size=None):
        shape = (image.shape[0], *canvas)
        valid = jnp.ones(shape, bool).at[:, 0].set(False)
        return PseudoLabel(jnp.full(shape, weights, jnp.int32), jnp.full(shape, 0.5), valid)


def test_online_labels_come_from_the_ovs_with_confidence_one():
    recipe, _ = _setup(ovs=_ConstantOVS())
    batch = _batch(recipe.method)
    del batch["ood"]["label"], batch["ood"]["confidence"]
    views = recipe.views(jnp.zeros((), jnp.int32), batch, _ConstantOVS.weights)
    assert views.ovs is not None
    np.testing.assert_array_equal(views.ovs.label, 2)
    np.testing.assert_array_equal(views.ovs.confidence, 1.0)
    expected = batch["ood"]["valid"].copy()
    expected[:, 0] = False
    np.testing.assert_array_equal(views.ovs.valid, expected)


def test_the_ovs_threshold_gates_cached_and_online_labels():
    recipe, _ = _setup()
    batch = _batch(recipe.method)
    batch["ood"]["confidence"][:] = 255
    batch["ood"]["confidence"][:, :, :4] = 100
    cached = recipe._replace(method=dataclasses.replace(recipe.method, ovs_threshold=0.5))
    views = cached.views(jnp.zeros((), jnp.int32), batch, None)
    assert views.ovs is not None
    np.testing.assert_array_equal(views.ovs.confidence, batch["ood"]["confidence"] == 255)
    online = cached._replace(ovs=_ConstantOVS())
    for threshold, confidence in ((0.5, 1.0), (0.51, 0.0)):  # the model's confidence is 0.5
        strict = online._replace(method=dataclasses.replace(recipe.method, ovs_threshold=threshold))
        found = strict.views(jnp.zeros((), jnp.int32), batch, _ConstantOVS.weights).ovs
        assert found is not None
        np.testing.assert_array_equal(found.confidence, confidence)


def test_views_depend_on_seed_and_step_alone():
    recipe, _ = _setup()
    batch = _batch(recipe.method)
    first, again, later = (recipe.views(jnp.int32(step), batch, None) for step in (4, 4, 5))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.s1["ood"] != later.s1["ood"])
    assert np.any(first.s1["unlabeled"] != first.s2["unlabeled"])


def test_a_batch_without_a_valid_pixel_has_a_finite_loss():
    recipe, state = _setup("supervised", "none")
    batch = _batch(recipe.method)
    batch["labeled"]["label"][:] = IGNORE
    views = recipe.views(jnp.zeros((), jnp.int32), batch, None)
    loss, _ = train_step.total_loss(state.params, state.batch_stats, views, recipe.student, recipe.method, IGNORE)
    assert float(loss) == 0.0
