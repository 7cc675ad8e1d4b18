"""The steps in PyTorch compute what ours do: the same loss, and the same parameters after an update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from semiovs_jax import augment, methods, optim, train_step
from semiovs_jax.benchmarks.step.flat_views import deinterleaved, flatten_views
from semiovs_jax.labelers import View
from semiovs_jax.labelers.snapshots import SnapshotDraw, SnapshotState, label_by_draw
from semiovs_jax.models import Functional
from semiovs_jax.models.clip.vit import MASKCLIP, ClipVit, ClipVitConfig
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.deeplabv3plus import DeepLabV3Plus as OurDeepLab
from semiovs_jax.models.deeplab.params import convert_student
from semiovs_jax.models.layers import ConvNorm, masked_variants, split_variants
from semiovs_jax.models.semivl.params import convert_label_maker, convert_semivl_student
from semiovs_jax.models.semivl.semivl import SemiVL, SemiVLConfig
from semiovs_jax.models.semivl.vlg import VlgConfig
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.ovs.maskclip import MaskClip
from semiovs_jax.runtime import sharding
from semiovs_jax.train_state import TrainState
from semiovs_jax.weights.keys import flatten
from tests.golden import formula_tensor

torch = pytest.importorskip("torch", reason="needs the extra bench")

from semiovs_jax.benchmarks.step.pytorch import semivl as torch_semivl  # noqa: E402
from semiovs_jax.benchmarks.step.pytorch.clip_vit import Tower  # noqa: E402
from semiovs_jax.benchmarks.step.pytorch.deeplab import DeepLabV3Plus  # noqa: E402
from semiovs_jax.benchmarks.step.pytorch.settings import Constants, published_constants  # noqa: E402
from semiovs_jax.benchmarks.step.pytorch.steps import Settings, TorchStep  # noqa: E402
from semiovs_jax.benchmarks.step.pytorch.student import Student, with_perturbed  # noqa: E402

CLASSES, SIZE, BATCH, IGNORE = 3, 16, 2, 255
DEEPLAB = Architecture(
    (2, 1), stem_widths=(3, 4, 5), widths=(2, 3), dilate=(True,), channels=4, low_level_channels=2, rates=(1, 2, 3)
)
FIXED = {"block", "stem_kernel"}  # of the papers' ResNet, the only one that the benchmark has in PyTorch
TORCH_DEEPLAB = {name: value for name, value in dataclasses.asdict(DEEPLAB).items() if name not in FIXED}
TOWER = {"patch_size": 4, "width": 8, "num_layers": 2, "num_heads": 2, "embed_dim": 6}
HEAD = {
    "channels": 4, "text_channels": 4, "num_layers": 1, "num_heads": 2, "pool": 2,
    "skip_channels": (2,), "up_channels": (3,), "rates": (1, 2, 3), "kernel_size": 3,
}  # fmt: skip
CHANGES = {"threshold": 0.4, "snapshots": 3, "snapshot_threshold": 0.4, "maskclip_threshold": 0.4, "ood_weight": 0.7}
DRAW = SnapshotDraw(jnp.array([2, 0, 1]), jnp.array([0.25, 0.75, 0.0]), jnp.int32(2))


class TorchPixels(Student):
    """The smallest student with all that the steps use; its names are those of parts of a DeepLabV3+."""

    def __init__(self):
        super().__init__()
        conv = torch.nn.Conv2d(3, 4, 1, bias=False)
        stem = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True))
        self.backbone = torch.nn.ModuleDict({"conv1": stem})
        self.classifier = torch.nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: Any, channel_masks: Any = None) -> Any:
        y = self.backbone["conv1"](x)
        return self.classifier(y if channel_masks is None else with_perturbed(y, channel_masks[0]))

    def parameter_groups(self) -> dict[str, list[Any]]:
        return {"backbone": list(self.backbone.parameters()), "head": list(self.classifier.parameters())}


class Stem(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.List([ConvNorm(3, 4, 1, rngs=rngs)])


class Pixels(nnx.Module):
    """Our form of `TorchPixels`."""

    perturbed_channels = (4,)
    parameter_groups = staticmethod(OurDeepLab.parameter_groups)

    def __init__(self, rngs: nnx.Rngs):
        self.backbone = Stem(rngs)
        self.classifier = nnx.Conv(4, CLASSES, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, *, channel_masks: Any = None) -> jax.Array:
        y = self.backbone.stem[0](x)
        if channel_masks is None:
            return self.classifier(y)
        return split_variants(self.classifier(masked_variants(y, channel_masks[0])), 2)


def _settings(method: str, ood: bool) -> Settings:
    return Settings(method, ood, "resnet50", CLASSES, BATCH, SIZE, "cpu", "float32")


def _filled(network: Student) -> Student:
    """The network in float64, with weights that are a formula of their names."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(formula_tensor(name, shape, 1)) for name, shape in shapes.items()})
    return network.double()


def _torch_semivl() -> Student:
    student = torch_semivl.SemiVL(CLASSES, SIZE, tower=Tower(**TOWER), head=torch_semivl.Head(**HEAD), out_layers=(0,))
    student.concepts_per_class = (2, 1, 3)
    student.concepts = student.concepts[:6]
    return student


def _our_semivl() -> nnx.Module:
    visual = ClipVitConfig(**TOWER, image_size=(SIZE, SIZE), **MASKCLIP)
    config = SemiVLConfig(visual, out_layers=(0,), head=VlgConfig(**HEAD))
    return SemiVL(config, CLASSES, image_size=SIZE, rngs=nnx.Rngs(0))


# By name: the student in PyTorch, and ours.
STUDENTS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "pixels": (TorchPixels, lambda: Pixels(nnx.Rngs(0))),
    "deeplab": (
        lambda: DeepLabV3Plus(CLASSES, **TORCH_DEEPLAB),
        lambda: DEEPLAB.build(CLASSES, rngs=nnx.Rngs(0)),
    ),
    "semivl": (_torch_semivl, _our_semivl),
}


def _constants(method: str) -> Constants:
    schedule = {"steps_per_epoch": 2, "total_steps": 12, "first_step": 5}
    return dataclasses.replace(published_constants(method), **CHANGES, **schedule)


def _config(method: str, ood: bool, constants: Constants) -> Any:
    """The published config of a method, with the test's constants."""
    config = common.with_method(common.semiovs_unimatch(), method)
    config.method.update({"ood": "ovs" if ood else "none", "ood_weight": constants.ood_weight})
    config.method.confidence_threshold = constants.threshold
    config.method.snapshots.confidence_threshold = constants.snapshot_threshold
    config.method.maskclip.confidence_threshold = constants.maskclip_threshold
    return config


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


class Ours:
    """Our step from the weights of a step in PyTorch, in float64.

    Attributes:
      spec: the step.
      channels: those that masks multiply.
      first: parameters and running statistics.
    """

    def __init__(self, student: str, theirs: TorchStep, config: Any):
        model = nnx.eval_shape(STUDENTS[student][1])
        self._network, *trees = Functional.create(model)
        self._trees = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), trees)
        self._theirs = theirs
        constants = theirs.constants
        self.channels = model.perturbed_channels
        self.first = self.converted(theirs.state_dict())
        self.spec = train_step.StepSpec(
            student=self._network,
            perturbed_channels=self.channels,
            method=methods.make_method(config.method),
            labelers={},
            optimizer=optim.make_optimizer(config.optim, constants.total_steps, model.parameter_groups),
            ignore_index=IGNORE,
            seed=0,
            steps_per_epoch=constants.steps_per_epoch,
            total_steps=constants.total_steps,
        )

    def converted(self, state_dict: dict[str, Any]) -> tuple[Any, Any]:
        arrays = {name: value.detach().numpy() for name, value in state_dict.items()}
        if not isinstance(self._theirs.student, torch_semivl.SemiVL):
            return convert_student(arrays, *self._trees)
        params, batch_stats = convert_semivl_student(arrays, *self._trees)
        return params, {**batch_stats, "text": jnp.asarray(self._theirs.student.text.numpy())}

    def update(self, views: train_step.Views, labels: train_step.Labels) -> train_step.Update:
        """The update at the first step of `Constants`."""
        step = jnp.int32(self._theirs.constants.first_step)
        state = TrainState.create(*self.first, self.spec.optimizer, {})

        @jax.jit
        def update(state: TrainState, views: train_step.Views, labels: train_step.Labels) -> train_step.Update:
            return train_step.update(state, views, labels | self._frozen_labels(views), self.spec)

        return update(_at(state, step), views, labels)

    def _frozen_labels(self, views: train_step.Views) -> train_step.Labels:
        """The labels of PrevMatch's snapshots or of SemiVL's frozen tower."""
        given = {
            name: View(views.weak[name], None, views.valid[name]) for name in ("unlabeled", "mix") if name in views.weak
        }
        found: dict[str, PseudoLabel] = {}
        if snapshots := self._theirs.snapshot_state_dicts():
            held = SnapshotState.create(*self.first, len(snapshots))
            for number, snapshot in enumerate(snapshots):
                held = held.offer(*self.converted(snapshot), jnp.float32(number + 1))
            found = label_by_draw(held, DRAW, self._network, given)
        if isinstance(self._theirs.student, torch_semivl.SemiVL):
            found = {name: self._label_by_clip(view) for name, view in given.items()}
        labeler = "snapshots" if snapshots else "maskclip"
        return {(labeler, name): label for name, label in found.items()}

    def _label_by_clip(self, view: View) -> PseudoLabel:
        student = self._theirs.student
        arrays = {name: value.numpy() for name, value in student.state_dict().items()}
        vision, tower = convert_label_maker(arrays, num_heads=TOWER["num_heads"])
        weights = {"visual": tower, "text": student.concepts.numpy()}
        model = MaskClip(
            weights=jax.tree.map(jnp.asarray, weights),
            num_classes=CLASSES,
            image_size=SIZE,
            fingerprint="",
            visual=nnx.graphdef(nnx.eval_shape(lambda: ClipVit(vision, rngs=nnx.Rngs(0)))),
            concepts_per_class=student.concepts_per_class,
            normalization="imagenet",
            logit_scale=100.0,
        )
        mean, std = (jnp.asarray(values) for values in (augment.IMAGENET_MEAN, augment.IMAGENET_STD))
        found = model.label(model.weights, 255 * (view.image * std + mean), label_size=view.valid.shape[1:])
        return found._replace(valid=found.valid & view.valid)


def _at(state: TrainState, step: jax.Array) -> TrainState:
    """The state with `step` updates done, as far as schedules read it."""

    def moved(node: Any) -> Any:
        return node._replace(count=step) if isinstance(node, optax.ScaleByScheduleState) else node

    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    return dataclasses.replace(state, step=step, opt_state=jax.tree.map(moved, state.opt_state, is_leaf=is_schedule))


QUICK = [("pixels", "unimatch", False), ("pixels", "prevmatch", True), ("deeplab", "supervised", False)]
SLOW = [("deeplab", "prevmatch", True), ("semivl", "semivl", True)]
LONG = [  # their terms and their networks are among those above
    ("pixels", "supervised", False),
    ("pixels", "unimatch", True),
    ("pixels", "prevmatch", False),
    ("deeplab", "unimatch", False),
    ("deeplab", "unimatch", True),
    ("deeplab", "prevmatch", False),
    ("semivl", "semivl", False),
]


@pytest.mark.parametrize(
    ("student", "method", "ood"),
    [
        *QUICK,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
        *(pytest.param(*case, marks=[pytest.mark.slow, pytest.mark.long]) for case in LONG),
    ],
)
def test_a_step_equals_ours(student: str, method: str, ood: bool):
    constants = _constants(method)
    config = _config(method, ood, constants)
    with jax.enable_x64(True):
        theirs = TorchStep(
            _settings(method, ood), constants=constants, build=lambda settings: _filled(STUDENTS[student][0]())
        )
        ours = Ours(student, theirs, config)
        views = _views(ours.spec.method, ours.channels)
        labels = _ovs_labels(views) if ood else {}
        placed = theirs.place(flatten_views(views, labels, DRAW if method == "prevmatch" else None))
        done = ours.update(views, labels)
        terms = {name: (int(term.passed), float(term.loss)) for name, term in done.outcome.terms.items()}
        assert all(passed > 0 and loss > 0 for passed, loss in terms.values()), terms

        before = theirs.loss(placed)
        assert before == pytest.approx(float(done.loss), rel=1e-9)
        assert theirs.loss(placed) == before  # neither weights nor running statistics have changed
        theirs.update(placed)
        found = ours.converted(theirs.state_dict())
        for tree, expected in zip(found, (done.state.params, done.state.batch_stats), strict=True):
            for path, value in flatten(tree).items():
                np.testing.assert_allclose(value, flatten(expected)[path], rtol=1e-9, atol=1e-11, err_msg=path)
        assert _trained(ours.first[0], done.state.params)


def _trained(before: Any, after: Any) -> bool:
    return any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_masks_are_sorted_by_stream():
    streams = [np.full((4, 1), index) + np.arange(4)[:, None] / 10 for index in range(3)]
    joined = np.asarray(sharding.interleave(*map(jnp.asarray, streams)))
    np.testing.assert_array_equal(deinterleaved(joined, 3), np.concatenate(streams).astype(joined.dtype))
