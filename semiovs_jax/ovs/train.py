"""Trains an open-vocabulary model: a SED on any labeled dataset, or the tiny models of the embedded benchmark.

    python -m semiovs_jax.ovs.train --config=configs/ovs_sed_shapes.py --workdir=runs/ovs_sed_shapes

`config.kind` is "sed" or "dense_clip". The weights that are written are what `config.ovs.weights` names.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from data_pipelines.errors import InputError
from semiovs_jax.ovs.training.maskclip import train_clip
from semiovs_jax.ovs.training.sed import train_sed
from semiovs_jax.runtime.command import run_command

KINDS: dict[str, Callable[[ml_collections.ConfigDict, str | Path], Path | None]] = {
    "dense_clip": train_clip,
    "sed": train_sed,
}


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> Path | None:
    """Trains what `config.kind` names, and writes its weights.

    Returns:
      The path of the weights; None if the machine was taken away before they were done.

    Raises:
      InputError: an unknown kind, or as the training of that kind.
    """
    if config.kind not in KINDS:
        raise InputError(f"config.kind={config.kind!r}: choose one of {', '.join(sorted(KINDS))}")
    return KINDS[config.kind](config, workdir)


def main(flags: Any) -> None:
    """Trains with `flags.config` in `flags.workdir`."""
    train(flags.config, flags.workdir)


if __name__ == "__main__":
    run_command(main)
