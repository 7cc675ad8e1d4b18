"""Ends a run whose numbers are not finite, before anything of it is evaluated or saved."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import jax
import ml_collections
from etils import epath

from data_pipelines.errors import InputError
from semiovs_jax.checkpoints.checkpointer import Checkpointer
from semiovs_jax.finite import not_finite

_logger = logging.getLogger(__name__)


class Guard:
    """Finds losses, gradients and states that are not finite.

    It waits for the devices after logged steps, and before an evaluation or a save: only where the run waits anyway.
    Every process must call every method.

    Attributes:
      bad_steps: the steps whose update was skipped, in order; see `config.train.max_bad_steps`.
    """

    def __init__(self, config: ml_collections.ConfigDict, checkpointer: Checkpointer, bad_steps: Iterable[int] = ()):
        """Starts with the first step.

        Args:
          config: an experiment; `train.log_every_steps`, `train.max_bad_steps` and `model.dtype` are read.
          checkpointer: of the run.
          bad_steps: of the part of the run before this one.
        """
        self._log_every_steps = config.train.log_every_steps
        self._most = config.train.max_bad_steps
        self._checkpointer = checkpointer
        self._advice = _advice(config, checkpointer.directory.parent)
        self._unread: list[tuple[int, Mapping[str, jax.Array]]] = []
        self.bad_steps = list(bad_steps)

    def after_step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Must be called after each step, with its number and its metrics (see `train_step.make_train_step`).

        Raises:
          InputError: the loss or the gradient of a step so far was not finite, and may not be skipped.
        """
        self._unread.append((step, metrics))
        if step % self._log_every_steps == 0:
            self._read()

    def check(self, step: int, state: Any) -> None:
        """Must be called before a state is evaluated or saved.

        Args:
          step: updates done.
          state: the train state after it.

        Raises:
          InputError: a part of the state is not finite, or as `after_step`.
        """
        self._read()
        if parts := not_finite(state):
            self._end(f"step {step}: the train state is not finite in {', '.join(parts)}")

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        judged = jax.device_get([(metrics["loss"], metrics["gradient_norm"]) for _, metrics in unread])
        for (step, metrics), values in zip(unread, judged, strict=True):
            if not all(map(math.isfinite, values)):
                found = f"step {step}: not finite: {', '.join(_not_finite(metrics))}"
                if not self._most:
                    self._end(found)
                self._skipped(step, found)

    def _skipped(self, step: int, found: str) -> None:
        self.bad_steps.append(step)
        if len(self.bad_steps) > self._most:
            earlier = ", ".join(map(str, self.bad_steps[:-1]))
            self._end(f"{found}, as in steps {earlier}; config.train.max_bad_steps={self._most} allows no more")
        _logger.warning("%s; its update is skipped (%d of at most %d)", found, len(self.bad_steps), self._most)

    def _end(self, found: str) -> NoReturn:
        saved = self._checkpointer.describe_saved()
        raise InputError(f"{found}; this state is not saved; {saved}; {self._advice}")


def _not_finite(metrics: Mapping[str, jax.Array]) -> list[str]:
    return [name for name, value in jax.device_get(dict(metrics)).items() if not math.isfinite(value)]


def _advice(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
    """What a person may try."""
    tries = ["a lower config.optim.learning_rate", "a higher config.train.max_bad_steps, which skips such updates"]
    if config.model.dtype != "float32":
        tries.append(f"config.model.dtype='float32' instead of {config.model.dtype!r}")
    return f"go on in another --workdir, with --fork_from={workdir} and {', or '.join(tries)}"
