"""Weights & Biases: a run of its project for each workdir.

Settings are W&B's environment variables: WANDB_MODE=offline, WANDB_PROJECT (if it is not set, "semiovs_jax"),
WANDB_ENTITY, WANDB_API_KEY. See https://docs.wandb.ai/models/track/environment-variables.
"""

import importlib.util
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import is_remote, replace_file
from semiovs_jax.writers.base import RunFacts, Writer, service_errors

_PROJECT = "semiovs_jax"
_ROWS = 4  # at most as many calls with the same step: metrics, panel, evaluation


def faults() -> list[str]:
    """A message if the package is missing, or if W&B does not know this user and is not offline."""
    if importlib.util.find_spec("wandb") is None:
        return [
            "config.train.writers: wandb is not installed; run pip install 'semiovs-jax[wandb]', or leave wandb out"
        ]
    import wandb

    if wandb.setup().settings.mode not in ("online", "shared"):
        return []
    try:
        known, reason = wandb.login(prompt=False), "there is no API key"
    except wandb.Error as error:
        known, reason = False, str(error)
    return [] if known else [f"config.train.writers: wandb: {reason}; run wandb login, or set WANDB_MODE=offline"]


@service_errors()
def open_writer(facts: RunFacts) -> Writer:
    """Continues the W&B run of a workdir, or starts one. Its identity is in WORKDIR/wandb/run_id."""
    import wandb

    identity = facts.workdir / "wandb" / "run_id"
    identity.parent.mkdir(parents=True, exist_ok=True)
    if not identity.exists():
        replace_file(identity, secrets.token_hex(4))
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        dir=tempfile.mkdtemp() if is_remote(facts.workdir) else str(facts.workdir),
        id=identity.read_text(encoding="utf-8").strip(),
        name=os.environ.get("WANDB_NAME", facts.name),
        config=dict(facts.config),
        resume="allow",
        reinit="create_new",  # runs of the calling program stay as they are
    )
    run.define_metric("*", step_metric="step")
    return _WandbRun(run)


class _WandbRun:
    """A run of W&B. The x-axis of its charts is the metric "step"."""

    def __init__(self, run: Any):
        self._run = run
        self._step = self._row = 0

    @service_errors()
    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._log(values, step)

    @service_errors()
    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        import wandb

        self._log({tag: wandb.Image(image)}, step)

    @service_errors()
    def add_text(self, tag: str, text: str, step: int) -> None:
        path = Path(self._run.dir) / f"{tag}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)  # W&B makes none with WANDB_MODE=disabled
        path.write_text(text + "\n", encoding="utf-8")
        self._run.save(str(path), base_path=self._run.dir, policy="now")

    @service_errors()
    def finish(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    @service_errors()
    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        """Adds a row under a number that follows the step.

        W&B wants ascending numbers, and an offline start does not know the last one of the start before. If W&B knows
        it, rows that are repeated after a restart get the next free numbers.
        """
        self._row = self._row + 1 if step == self._step else 0
        self._step = step
        number = max(_ROWS * step + self._row, self._run.step)
        self._run.log({**values, "step": step}, step=number, commit=True)
