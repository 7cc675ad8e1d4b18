"""A run whose numbers are not finite ends before anything of it is saved."""

from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from semiovs_jax.checkpoints.checkpointer import Checkpointer
from semiovs_jax.guard import Guard
from tests.checkpoints.toy import make_iterator

GOOD = {"params": {"head": jnp.ones(3)}, "step": jnp.int32(2)}
BAD = {"params": {"head": jnp.array([1, jnp.nan, 1])}, "step": jnp.int32(5)}


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    """Of a run with two checkpoints, the earlier of which is the best."""
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(2, GOOD, make_iterator(), {}, 0.5)
        checkpointer.save(4, GOOD, make_iterator(), {}, 0.25)
        yield checkpointer


def _config(dtype: str = "float32", **train: int) -> ConfigDict:
    return ConfigDict({"train": {"log_every_steps": 3, "max_bad_steps": 0, **train}, "model": {"dtype": dtype}})


def _metrics(loss: float = 1.0, gradient_norm: float = 1.0, **others: float) -> dict:
    values = {"loss": loss, "gradient_norm": gradient_norm, **others}
    return {name: jnp.float32(value) for name, value in values.items()}


def test_a_logged_step_finds_the_first_bad_one_and_its_terms(checkpointer: Checkpointer):
    guard = Guard(_config(), checkpointer)
    guard.after_step(4, _metrics())
    guard.after_step(5, _metrics(gradient_norm=jnp.inf, loss_x=2, loss_u_s1=jnp.nan))
    with pytest.raises(InputError) as error:
        guard.after_step(6, _metrics(loss=jnp.nan))
    message = str(error.value)
    assert "step 5: not finite: gradient_norm, loss_u_s1; this state is not saved; the newest checkpoint is" in message
    run = checkpointer.directory.parent
    assert f"{run}/checkpoints/4, the best {run}/checkpoints/2 (mIoU 50.00 %)" in message
    assert f"--fork_from={run} and a lower config.optim.learning_rate, or a higher config.train.max_bad" in message
    assert "float32" not in message


def test_between_logged_steps_nothing_is_read(checkpointer: Checkpointer):
    guard = Guard(_config(), checkpointer)
    unreadable = dict.fromkeys(("loss", "gradient_norm"), object())
    guard.after_step(1, unreadable)
    guard.after_step(2, unreadable)
    with pytest.raises(TypeError):
        guard.after_step(3, unreadable)


def test_the_check_before_saving_reads_the_steps_since_and_the_state(checkpointer: Checkpointer):
    guard = Guard(_config("bfloat16"), checkpointer)
    guard.after_step(4, _metrics())
    guard.check(4, GOOD)
    guard.after_step(5, _metrics())
    with pytest.raises(InputError, match=r"step 5: the train state is not finite in params/head; .*dtype='float32'"):
        guard.check(5, BAD)
    guard.after_step(5, _metrics(loss=jnp.inf))
    with pytest.raises(InputError, match="step 5: not finite: loss;"):
        guard.check(5, BAD)


def test_a_state_that_is_not_finite_is_never_written(checkpointer: Checkpointer):
    with pytest.raises(InputError, match=r"step 5: not finite: params/head; it is not saved; the newest .*/4, the bes"):
        checkpointer.save(5, BAD, make_iterator(), {}, 0.75)
    assert sorted(path.name for path in checkpointer.directory.iterdir()) == ["2", "4"]
    assert checkpointer.best == (2, 0.5)


def test_before_the_first_checkpoint_the_message_says_so(tmp_path: Path):
    with Checkpointer(tmp_path) as empty, pytest.raises(InputError, match=r"there is no checkpoint in .*/checkpoints"):
        Guard(_config(), empty).after_step(3, _metrics(loss=jnp.nan))


def test_skipped_steps_are_counted_and_too_many_end_the_run(
    checkpointer: Checkpointer, caplog: pytest.LogCaptureFixture
):
    guard = Guard(_config(max_bad_steps=2), checkpointer, bad_steps=[1])
    guard.after_step(5, _metrics(loss=jnp.nan))
    guard.after_step(6, _metrics())
    guard.check(6, GOOD)
    assert guard.bad_steps == [1, 5]
    assert "step 5: not finite: loss; its update is skipped (2 of at most 2)" in caplog.text
    guard.after_step(7, _metrics(gradient_norm=jnp.nan))
    with pytest.raises(
        InputError, match=r"step 7: not finite: gradient_norm, as in steps 1, 5; config\.train\.max_bad"
    ):
        guard.check(7, GOOD)
