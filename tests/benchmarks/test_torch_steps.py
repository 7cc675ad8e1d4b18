"""The steps in PyTorch compute what ours do: the same loss, and the same parameters after an update."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from semiovs_jax import methods, optim, train_step
from semiovs_jax.benchmarks.flat_views import deinterleaved, flatten_views
from semiovs_jax.labelers import View
from semiovs_jax.labelers.snapshots import SnapshotDraw, Snapshots, SnapshotState, label_by_draw
from semiovs_jax.models import Functional
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.params import convert_student
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.runtime import sharding
from semiovs_jax.train_state import TrainState
from semiovs_jax.weights.keys import flatten
from tests.golden import formula_tensor

torch = pytest.importorskip("torch")

from semiovs_jax.benchmarks.pytorch.deeplab import DeepLabV3Plus  # noqa: E402
from semiovs_jax.benchmarks.pytorch.settings import Constants  # noqa: E402
from semiovs_jax.benchmarks.pytorch.steps import Settings, TorchStep  # noqa: E402

CLASSES, SIZE, BATCH, IGNORE = 3, 17, 2, 255
TINY = Architecture(
    (2, 1), stem_widths=(3, 4, 5), widths=(2, 3), dilate=(True,), channels=4, low_level_channels=2, rates=(1, 2, 3)
)
CONSTANTS = Constants(
    threshold=0.5, snapshots=3, snapshot_threshold=0.5, ood_weight=0.7, steps_per_epoch=2, total_steps=12, first_step=5
)
DRAW = SnapshotDraw(jnp.array([2, 0, 1]), jnp.array([0.25, 0.75, 0.0]), jnp.int32(2))


def _settings(method: str, ood: bool, **changes: Any) -> Settings:
    given = Settings(method, ood, "resnet50", CLASSES, BATCH, SIZE, "cpu", "float32")
    return dataclasses.replace(given, **changes)


def _tiny_student(settings: Settings) -> Any:
    """A student in float64 whose weights are exact in float32, the type of converted ones."""
    network = DeepLabV3Plus(settings.num_classes, **dataclasses.asdict(TINY))
    values = {name: torch.from_numpy(formula_tensor(name, value.shape, 1)) for name, value in _state(network)}
    network.load_state_dict(values)
    return network.double()


def _state(network: Any) -> list[tuple[str, Any]]:
    return list(network.state_dict().items())


def _arrays(state_dict: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in state_dict.items()}


def _method(name: str, ood: bool) -> methods.Method:
    config = common.semiovs_unimatch().method
    config.update({"name": name, "ood": "ovs" if ood else "none", "ood_weight": CONSTANTS.ood_weight})
    config.confidence_threshold = CONSTANTS.threshold
    config.snapshots.confidence_threshold = CONSTANTS.snapshot_threshold
    return methods.make_method(config)


def _views(method: methods.Method, channels: tuple[int, ...]) -> train_step.Views:
    rng = np.random.default_rng(0)

    def images() -> dict[str, np.ndarray]:
        return {name: rng.standard_normal((BATCH, SIZE, SIZE, 3)) for name in method.streams}

    def box() -> np.ndarray:
        return rng.random((BATCH, SIZE, SIZE)) < 0.3

    count = BATCH * (1 + len(method.weak_streams))
    masks = [2.0 * rng.integers(0, 2, (count, width)) for width in channels] if method.terms else []
    label = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE)).astype(np.int32)
    label[:, :2] = IGNORE
    return train_step.Views(
        weak=images(),
        s1=images(),
        s2=images(),
        valid={name: rng.random((BATCH, SIZE, SIZE)) < 0.8 for name in method.streams},
        label=label,
        box1=box(),
        box2=box(),
        weak_masks=tuple(np.stack([np.ones_like(mask), mask]) for mask in masks),
    )


def _ovs_labels(views: train_step.Views) -> train_step.Labels:
    rng = np.random.default_rng(1)
    label = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE)).astype(np.int32)
    return {("ovs", "ood"): PseudoLabel(label, np.ones(label.shape), views.valid["ood"])}


def _optim_config() -> Any:
    config = common.semiovs_unimatch().optim
    config.learning_rate = CONSTANTS.learning_rate
    return config


class _Ours:
    """Our step with the weights of a step in PyTorch, in float64."""

    def __init__(self, method: methods.Method, theirs: TorchStep):
        model = nnx.eval_shape(lambda: TINY.build(CLASSES, rngs=nnx.Rngs(0)))
        self.student, *trees = Functional.create(model)
        self.channels = model.perturbed_channels
        double = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), trees)
        self.convert = lambda state_dict: convert_student(_arrays(state_dict), *double)
        self.spec = train_step.StepSpec(
            student=self.student,
            perturbed_channels=self.channels,
            method=method,
            labelers={},
            optimizer=optim.make_optimizer(_optim_config(), CONSTANTS.total_steps, model.parameter_groups),
            ignore_index=IGNORE,
            seed=0,
            steps_per_epoch=CONSTANTS.steps_per_epoch,
            total_steps=CONSTANTS.total_steps,
        )
        first = self.convert(theirs.state_dict())
        state = TrainState.create(*first, self.spec.optimizer, {})
        opt_state = optax.tree_utils.tree_set(state.opt_state, count=jnp.int32(CONSTANTS.first_step))
        self.state = dataclasses.replace(state, step=jnp.int32(CONSTANTS.first_step), opt_state=opt_state)
        self.held = None
        if "snapshots" in method.labelers:
            self.held = SnapshotState.create(*first, CONSTANTS.snapshots)
            for number, snapshot in enumerate(theirs.snapshot_state_dicts()):
                self.held = self.held.offer(*self.convert(snapshot), jnp.float32(number + 1))
            labelers = {"snapshots": Snapshots(self.student, CONSTANTS.snapshots, 3)}
            self.spec = self.spec._replace(labelers=labelers)
            self.state = dataclasses.replace(self.state, labelers={"snapshots": self.held})

    def update(self, views: train_step.Views, labels: train_step.Labels) -> train_step.Update:
        @jax.jit
        def update(state: TrainState, views: train_step.Views, labels: train_step.Labels) -> train_step.Update:
            if self.held is not None:
                given = {name: View(views.weak[name], None, views.valid[name]) for name in ("unlabeled", "mix")}
                found = label_by_draw(state.labelers["snapshots"], DRAW, self.student, given)
                labels = labels | {("snapshots", name): label for name, label in found.items()}
            return train_step.update(state, views, labels, self.spec)

        return update(self.state, views, labels)


@pytest.mark.parametrize(
    ("name", "ood"),
    [("supervised", False), ("unimatch", False), ("unimatch", True), ("prevmatch", False), ("prevmatch", True)],
)
def test_a_step_equals_ours(name: str, ood: bool):
    with jax.enable_x64(True):
        theirs = TorchStep(_settings(name, ood), constants=CONSTANTS, build=_tiny_student)
        method = _method(name, ood)
        ours = _Ours(method, theirs)
        views = _views(method, ours.channels)
        labels = _ovs_labels(views) if ood else {}
        placed = theirs.place(flatten_views(views, labels, DRAW if ours.held is not None else None))
        done = ours.update(views, labels)
        terms = {name: (int(term.passed), float(term.loss)) for name, term in done.outcome.terms.items()}
        assert all(passed > 0 and loss > 0 for passed, loss in terms.values()), terms

        assert theirs.loss(placed) == pytest.approx(float(done.loss), rel=1e-9)
        assert theirs.loss(placed) == pytest.approx(float(done.loss), rel=1e-9)  # nothing has changed
        theirs.update(placed)
        found = ours.convert(theirs.state_dict())
        expected = flatten(done.state.params), flatten(done.state.batch_stats)
        first = flatten(ours.state.params)
        for tree, values in zip(found, expected, strict=True):
            for path, value in flatten(tree).items():
                np.testing.assert_allclose(value, values[path], rtol=1e-9, atol=1e-11, err_msg=path)
                assert path not in first or np.any(values[path] != first[path]), path


def test_masks_are_sorted_by_stream():
    streams = [np.full((4, 1), index) + np.arange(4)[:, None] / 10 for index in range(3)]
    joined = np.asarray(sharding.interleave(*map(jnp.asarray, streams)))
    np.testing.assert_array_equal(deinterleaved(joined, 3), np.concatenate(streams).astype(joined.dtype))
