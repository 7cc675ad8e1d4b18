"""Our train step of a case, on random images, compiled: the whole step, and the update alone."""

import functools
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from data_pipelines.errors import Faults
from semiovs_jax import experiment
from semiovs_jax.benchmarks.step.cases import (
    DRAWN_SNAPSHOTS,
    FIRST_STEP,
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    Case,
    case_config,
)
from semiovs_jax.benchmarks.step.flat_views import flatten_views
from semiovs_jax.benchmarks.step.our_weights import Weights, initial_state, make_labelers
from semiovs_jax.labelers import View
from semiovs_jax.labelers.snapshots import SnapshotDraw, label_by_draw
from semiovs_jax.methods import Method
from semiovs_jax.models import Functional
from semiovs_jax.runtime.ahead import bytes_per_device, compile_step
from semiovs_jax.runtime.flops import count_flops
from semiovs_jax.runtime.sharding import make_mesh, replicated, shard_batch
from semiovs_jax.train_state import TrainState
from semiovs_jax.train_step import Labels, StepSpec, label_views, make_train_step, update
from semiovs_jax.views import Views, make_views

_OVS, _SNAPSHOTS = "ovs", "snapshots"  # labelers


class OurStep:
    """The product's train step, and its update alone, compiled for the first device.

    Args:
      case: what is measured.
      weights: of the student, of snapshots and of words; by default random.
      seed: of the images.

    Attributes:
      images: of all streams in a step.
    """

    images: int

    def __init__(self, case: Case, weights: Weights | None = None, seed: int = 0):
        config, weights, faults = case_config(case), weights or Weights(), Faults()
        dataset, method, student = experiment.settle_names(config, faults).usable(faults)
        labelers = make_labelers(config, dataset, method, student, weights)
        self._spec = experiment.make_step_spec(
            config, dataset, method, student, labelers, steps=TOTAL_STEPS, steps_per_epoch=STEPS_PER_EPOCH
        )
        plain = nnx.eval_shape(lambda: experiment.make_student(case_config(replace(case, remat="none")), dataset))
        self._plain = self._spec._replace(student=Functional.create(plain, config.model.matmul_precision)[0])
        self._mesh = make_mesh(jax.devices()[:1])
        self._state = jax.device_put(initial_state(config, dataset, self._spec, weights), replicated(self._mesh))
        self._batch = shard_batch(_random_batch(config, method, dataset.num_classes, seed), self._mesh)
        frozen = {name: labeler.weights for name, labeler in labelers.items()}
        self._frozen = jax.device_put(frozen, replicated(self._mesh))
        self._draw = _draw() if _SNAPSHOTS in labelers else None
        self.images = case.batch_size * len(method.streams)

    def flat_views(self) -> dict[str, np.ndarray]:
        """The views of the first step, for a step in another framework."""
        return flatten_views(*self._views, self._draw)

    def compile_step(self) -> float:
        """Compiles the whole step; returns the seconds that it took."""
        start = time.perf_counter()
        step = make_train_step(self._spec, self._mesh)
        self._step = compile_step(step, (self._state, self._batch, self._frozen), self._mesh)
        return time.perf_counter() - start

    def compile_update(self) -> float:
        """Compiles the update alone; returns the seconds that it took, without those to make the views."""
        arguments = (self._state, *self._given())
        start = time.perf_counter()
        update_alone = functools.partial(self._update_alone, self._spec)
        jitted = jax.jit(update_alone, donate_argnums=0, out_shardings=replicated(self._mesh))
        self._update = compile_step(jitted, arguments, self._mesh)
        return time.perf_counter() - start

    def flops(self) -> float:
        """FLOPs of one update in which nothing is computed twice, whatever the case's `remat`; see `count_flops`.

        PrevMatch labels with a drawn number of snapshots, of which one counts.
        """
        return count_flops(functools.partial(self._update_alone, self._plain), self._state, *self._given())

    def planned_bytes(self) -> int:
        """Memory of the device that the compiler plans for an update."""
        return bytes_per_device(self._update)

    def step(self) -> None:
        """One whole step, views included; returns before the device is done."""
        self._state, _ = self._step(self._state, self._batch, self._frozen)

    def update(self) -> jax.Array:
        """One update from the views of the first step; returns the loss before it, maybe before the device is done."""
        self._state, loss = self._update(self._state, *self._given())
        return loss

    def synchronize(self) -> None:
        """Waits for the device."""
        jax.block_until_ready(self._state)

    def _given(self) -> tuple[Any, ...]:
        """The arguments of `_update_alone` but spec and state."""
        return self._batch, self._frozen, self._views[0], self._draw

    @functools.cached_property
    def _views(self) -> tuple[Views, Labels]:
        """The views of the first step, and the OVS's labels."""
        return jax.jit(self._make_views)(self._batch, self._frozen)

    def _make_views(self, batch: Any, frozen: Any) -> tuple[Views, Labels]:
        key = self._spec.key(jnp.int32(FIRST_STEP))
        views = make_views(key, batch, self._spec.method, self._spec.perturbed_channels)
        cached = {name: labeler for name, labeler in self._spec.labelers.items() if name == _OVS}
        state = TrainState(jnp.int32(FIRST_STEP), (), (), (), {})
        return views, label_views(key, batch, views, state, frozen, self._spec._replace(labelers=cached))

    def _update_alone(
        self, spec: StepSpec, state: TrainState, batch: Any, frozen: Any, views: Views, draw: SnapshotDraw | None
    ) -> tuple[TrainState, jax.Array]:
        key = spec.key(state.step)
        others = {name: labeler for name, labeler in spec.labelers.items() if name != _SNAPSHOTS}
        labels = label_views(key, batch, views, state, frozen, spec._replace(labelers=others))
        if draw is not None:
            given = {
                name: View(views.weak[name], batch[name]["image"], views.valid[name])
                for name in spec.method.labeled_by[_SNAPSHOTS]
            }
            found = label_by_draw(state.labeler(_SNAPSHOTS), draw, spec.student, given)
            labels |= {(_SNAPSHOTS, name): label for name, label in found.items()}
        done = update(state, views, labels, spec)
        return done.state, done.loss


def _draw() -> SnapshotDraw:
    """The same snapshots in every update, with equal weights."""
    count = DRAWN_SNAPSHOTS
    return SnapshotDraw(jnp.arange(count), jnp.full(count, 1 / count), jnp.int32(count))


def _random_batch(config: ml_collections.ConfigDict, method: Method, num_classes: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == np.bool_:
            return np.ones(leaf.shape, np.bool_)
        most = 256 if path[-1].key == "image" else num_classes
        return rng.integers(0, most, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, experiment.batch_structs(config, method))
