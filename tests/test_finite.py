import jax.numpy as jnp
import pytest

from semiovs_jax.finite import not_finite
from semiovs_jax.train_state import TrainState


def _state(**changes) -> TrainState:
    params = {"backbone": {0: {"kernel": jnp.ones((2, 3))}}, "head": {"bias": jnp.zeros(3, jnp.bfloat16)}}
    labelers = {"snapshots": {"pushed": jnp.int32(2), "best": jnp.float32(0.5)}}
    state = TrainState(jnp.int32(1), params, {"mean": jnp.ones(3)}, {"trace": {"kernel": jnp.ones(2)}}, labelers)
    return state.replace(**changes)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"params": {"backbone": jnp.array([1, jnp.nan]), "head": jnp.ones(2)}}, ["params/backbone"]),
        ({"params": {"head": jnp.array([1, jnp.inf], jnp.bfloat16)}}, ["params/head"]),
        ({"batch_stats": {"mean": jnp.array([-jnp.inf])}}, ["batch_stats/mean"]),
        ({"labelers": {"ema": (jnp.ones(2), jnp.array(jnp.nan))}}, ["labelers/ema"]),
        (
            {"opt_state": {"trace": {"kernel": jnp.array(jnp.nan)}}, "batch_stats": {"mean": jnp.array(jnp.nan)}},
            ["batch_stats/mean", "opt_state/trace"],
        ),
    ],
)
def test_the_parts_that_are_not_finite_are_named(changes: dict, names: list[str]):
    assert not_finite(_state(**changes)) == names
