"""The time of a start is divided among phases, none counted twice."""

import itertools

import jax.numpy as jnp
import pytest

from semiovs_jax.reporting.goodput import Goodput, format_shares


class _Result:
    """An array that the devices have finished, or not."""

    def __init__(self, ready: bool):
        self.is_ready = lambda: ready


def _ticking() -> Goodput:
    """A second passes between any two looks at the clock."""
    seconds = itertools.count()
    return Goodput(now=lambda: next(seconds))


def test_an_inner_phase_pauses_the_outer_one():
    goodput = _ticking()
    with goodput.phase("evaluation"), goodput.phase("steps"):
        pass
    assert goodput.seconds() == {"other": 2, "evaluation": 2, "steps": 1}


def test_a_phase_that_fails_ends():
    goodput = _ticking()
    with pytest.raises(KeyError), goodput.phase("compile"):
        raise KeyError
    assert goodput.seconds() == {"other": 2, "compile": 1}


@pytest.mark.parametrize(
    ("ready", "phase"),
    [((), "input"), ((True, True), "input"), ((True, False), "steps")],
    ids=["first", "idle", "busy"],
)
def test_waiting_for_input_counts_while_the_devices_have_no_work(ready: tuple[bool, ...], phase: str):
    goodput = _ticking()
    with goodput.input({str(index): _Result(done) for index, done in enumerate(ready)}):  # type: ignore[misc]
        pass
    assert goodput.seconds() == {"other": 2, phase: 1}


def test_arrays_tell_whether_they_are_ready():
    goodput = _ticking()
    with goodput.input({"loss": jnp.float32(1).block_until_ready()}):
        pass
    assert "input" in goodput.seconds()


def test_seconds_since_the_last_call_add_up():
    goodput = _ticking()
    parts = []
    for phase in ("compile", "steps", "steps"):
        with goodput.phase(phase):
            pass
        parts.append(goodput.seconds_since_last())
    total = goodput.seconds()
    assert parts[1]["steps"] == parts[2]["steps"] == 1
    assert sum(part.get("steps", 0) for part in parts) == total["steps"]
    assert sum(sum(part.values()) for part in parts) == sum(total.values()) - 1  # of this look at the clock


def test_shares_are_of_the_whole():
    assert format_shares({"steps": 1500.0, "input": 500.0, "labeling": 0.0}) == "2,000.0 s: steps 75.0 %, input 25.0 %"
