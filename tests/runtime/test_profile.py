"""A trace has the steps that the config asks for, whole, and no more; without one, nothing is written."""

import gzip
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from semiovs_jax.runtime.profile import Profile


def _run(folder: Path, steps: tuple[int, ...], first: int = 0, total: int = 6) -> None:
    step = jax.jit(lambda state: state * 2)
    state = jnp.ones(8)
    with Profile(folder, steps, first, total) as profile:
        for number in range(first + 1, total + 1):
            profile.before(number, state)
            state = step(state)
            profile.after(number, state)


def _traced(folder: Path) -> list[int]:
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")


def test_steps_count_from_the_start_of_this_process(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "semiovs_jax"):
        _run(tmp_path / "profile", (2, 3), first=10, total=20)
    assert _traced(tmp_path / "profile") == [12, 13]
    assert f"steps 12 to 13 are traced; to look at them: pip install xprof && xprof --logdir={tmp_path}" in caplog.text


def test_the_last_step_of_the_run_ends_the_trace(tmp_path: Path):
    _run(tmp_path, (6, 99))
    assert _traced(tmp_path) == [6]


@pytest.mark.parametrize("steps", [(), (0, 0)])
def test_no_steps_no_trace(steps: tuple[int, ...], tmp_path: Path):
    _run(tmp_path / "profile", steps)
    assert not (tmp_path / "profile").exists()


def test_a_start_that_is_too_short_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _run(tmp_path / "profile", (10, 15))
    assert "config.train.profile_steps=(10, 15): this start has 6 steps, so none is traced" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    _run(tmp_path / "file" / "profile", (1, 1))
    assert "no trace is written" in caplog.text


def test_a_step_that_fails_leaves_no_trace_running(tmp_path: Path):
    with pytest.raises(ConnectionAbortedError), Profile(tmp_path, (1, 5), 0, 9) as profile:  # noqa: PT012
        profile.before(1, jnp.ones(1))
        raise ConnectionAbortedError
    _run(tmp_path / "again", (1, 1))
    assert _traced(tmp_path / "again") == [1]
