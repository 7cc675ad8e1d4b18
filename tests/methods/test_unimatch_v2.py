"""UniMatch V2 (arXiv 2410.10777), and SemiOVS on it, as a table: the step does not know them.

V2 has an EMA teacher, complementary channel masks on the strong views, and the batch in reversed order as its own
CutMix partner. Only the teacher sees weak views.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from semiovs_jax import train_step
from semiovs_jax.labelers.ema import Ema
from semiovs_jax.labelers.ovs import CachedLabels
from semiovs_jax.methods.table import Method, Rule
from semiovs_jax.models import Functional
from semiovs_jax.models.layers import masked_variants, split_variants
from semiovs_jax.runtime import sharding
from semiovs_jax.train_loop import evaluated_weights
from semiovs_jax.train_state import TrainState
from semiovs_jax.views import make_views, mixed_views

CLASSES, SIZE, BATCH, IGNORE = 4, 17, 2, 255
SHARES = {"s1": 0.5, "s2": 0.5}


class TinyStudent(nnx.Module):
    """A convolution, batch normalization, and a classifier whose input takes channel masks."""

    perturbed_channels = (8,)

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.classifier = nnx.Conv(8, CLASSES, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, *, channel_masks: tuple[jax.Array, ...] | None = None) -> jax.Array:
        features = jax.nn.relu(self.norm(self.conv(x)))
        if channel_masks is None:
            return self.classifier(features)
        (masks,) = channel_masks
        return split_variants(self.classifier(masked_variants(features, masks)), len(masks))


def complementary(key: jax.Array, images: int, channels: Sequence[int]) -> tuple[jax.Array, ...]:
    """Masks m and 2 - m for the two strong views of an image; half of the images keep everything."""
    pairs = images // 2
    draw_key, keep_key = jax.random.split(key)
    whole = (jax.random.permutation(keep_key, pairs) < pairs // 2)[:, None]

    def level(key: jax.Array, count: int) -> jax.Array:
        first = jnp.where(whole, 1.0, 2.0 * jax.random.bernoulli(key, 0.5, (pairs, count)))
        return sharding.interleave(first, 2 - first)[None]

    return tuple(level(k, n) for k, n in zip(jax.random.split(draw_key, len(channels)), channels, strict=True))


TEACHER = Rule(stream="unlabeled", labeler="ema", threshold=0.0)
OVS = Rule(stream="ood", labeler="ovs", pasted_labeler="ema", threshold=0.0)
V2 = Method(
    "unimatch_v2",
    TEACHER.expand(SHARES),
    partners={"unlabeled": "unlabeled"},
    strong_masks=complementary,
    evaluates="ema",
)
WITH_OOD = Method(
    "unimatch_v2",
    (*V2.terms, *OVS.expand(SHARES, "_ood")),
    partners={"unlabeled": "unlabeled", "ood": "unlabeled"},
    strong_masks=complementary,
    evaluates="ema",
)


def _setup(method: Method) -> tuple[train_step.StepSpec, TrainState, dict]:
    model = TinyStudent(nnx.Rngs(0))
    student, params, batch_stats = Functional.create(model)
    labelers = {"ema": Ema(student), "ovs": CachedLabels(IGNORE)}
    labelers = {name: labelers[name] for name in method.labelers}
    spec = train_step.StepSpec(student, model.perturbed_channels, method, labelers, optax.sgd(0.01), IGNORE, 3, 2, 10)
    rng = np.random.default_rng(0)
    batch = {
        name: {
            "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
            "valid": np.ones((BATCH, SIZE, SIZE), bool),
        }
        for name in method.streams
    }
    for name in {"labeled", "ood"} & set(batch):
        batch[name]["label"] = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE), dtype=np.uint8)
    return spec, TrainState.create(params, batch_stats, spec.optimizer, labelers), batch


def test_the_table_needs_neither_mix_nor_weak_views_of_the_student():
    assert V2.streams == ("labeled", "unlabeled")
    assert WITH_OOD.streams == ("labeled", "unlabeled", "ood")
    assert WITH_OOD.weak_streams == ()
    assert WITH_OOD.labeled_by == {"ema": ("unlabeled",), "ovs": ("ood",)}


def test_masks_of_the_two_views_are_complementary_or_both_keep_everything():
    (masks,) = complementary(jax.random.key(1), 12, [16])
    first, second = sharding.deinterleave(masks[0], 2)
    np.testing.assert_array_equal(first + second, 2.0)
    whole = np.asarray((first == 1).all(1))
    assert whole.sum() == 3
    assert set(np.unique(first[~whole])) == {0.0, 2.0}


def test_it_takes_steps_and_the_teacher_follows():
    spec, state, batch = _setup(WITH_OOD)
    mesh = sharding.make_mesh(jax.devices()[:1])
    step = train_step.make_train_step(spec, mesh)
    state = jax.device_put(state, sharding.replicated(mesh))
    weights = {name: labeler.weights for name, labeler in spec.labelers.items()}
    students = []
    for _ in range(3):
        state, metrics = step(state, batch, weights)
        students.append(jax.device_get(state.params))
        assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    assert step._cache_size() == 1
    assert metrics["mask_ratio"] == 1
    total = metrics["loss_x"] + 0.5 * sum(metrics[f"loss_u_{name}"] for name in ("s1", "s2", "s1_ood", "s2_ood"))
    np.testing.assert_allclose(metrics["loss"], total / 3, rtol=1e-6)
    # After update i the teacher keeps min(1 - 1 / (i + 1), 0.996): the first one copies the student.
    teacher, _ = evaluated_weights(spec, state)
    expected = jax.tree.map(lambda a, b, c: 2 / 3 * (a / 2 + b / 2) + c / 3, *students)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), teacher, expected)


def test_an_image_is_pasted_from_the_reversed_batch_with_the_teachers_label():
    spec, state, batch = _setup(WITH_OOD)
    key = spec.key(state.step)
    views = jax.jit(lambda k, b: make_views(k, b, spec.method, spec.perturbed_channels))(key, batch)
    mixed, _ = mixed_views(views, "unlabeled", spec.method)
    expected = np.where(views.box1[..., None], views.s1["unlabeled"][::-1], views.s1["unlabeled"])
    np.testing.assert_array_equal(mixed, expected)
    mixed, _ = mixed_views(views, "ood", spec.method)
    np.testing.assert_array_equal(mixed, np.where(views.box1[..., None], views.s1["unlabeled"], views.s1["ood"]))

    weights = {name: labeler.weights for name, labeler in spec.labelers.items()}
    labels = train_step.label_views(key, batch, views, state, weights, spec)
    assert set(labels) == {("ema", "unlabeled"), ("ovs", "ood")}
    logits, _ = spec.student.apply(state.params, state.batch_stats, views.weak["unlabeled"], train=False)
    np.testing.assert_array_equal(labels["ema", "unlabeled"].label, jnp.argmax(logits, -1))
