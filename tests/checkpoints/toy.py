"""A small train state, its update and its data, for tests of checkpoints."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from semiovs_jax.checkpoints.checkpointer import Checkpointer
from semiovs_jax.train_state import TrainState

OPTIMIZER = optax.chain(
    optax.trace(0.9),
    optax.partition(
        {"backbone": optax.scale(-0.1), "head": optax.scale_by_schedule(lambda step: -1.0 / (1 + step))},
        lambda params: {name: jax.tree.map(lambda _, n=name: n, tree) for name, tree in params.items()},
    ),
)


def make_state(width=16, sharding=None, labelers=None):
    # Integer keys are what lists of NNX modules become.
    params = {
        "backbone": {"layers": {0: {"kernel": jnp.arange(8.0 * width).reshape(8, width)}, 1: {"bias": jnp.ones(8)}}},
        "head": {"kernel": jnp.full((width, 8), 2.0)},
    }
    state = TrainState.create(params, {"bn": {"mean": jnp.zeros(width)}}, OPTIMIZER, labelers or {})
    return jax.device_put(state, sharding) if sharding else state


@jax.jit
def update(state, batch):
    """A step whose result depends on the state, on the momentum and on the data."""
    grads = jax.tree.map(lambda p: 0.01 * p + jnp.mean(batch), state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def make_iterator():
    dataset = grain.MapDataset.range(1000).seed(3).shuffle().repeat().batch(8)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def run(workdir, steps, miou=(), **options):
    """Saves a state at each of `steps`, with the mIoU of `miou` where it has one; returns the state."""
    state = make_state()
    with Checkpointer(workdir, **options) as checkpointer:
        for step in steps:
            state = state.replace(step=jnp.int32(step))
            assert checkpointer.save(step, state, make_iterator(), {"model": "toy"}, dict(miou).get(step))
    return state


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def wait_and_restore(checkpointer, target):
    checkpointer.wait()
    return checkpointer.restore(target, make_iterator())


def truncate(step_dir):
    """Cuts the end off the largest file of a checkpoint's state."""
    largest = max((p for p in step_dir.glob("state/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])
