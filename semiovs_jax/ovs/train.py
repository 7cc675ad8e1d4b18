"""Trains an open-vocabulary model: a SED on any labeled dataset, or the tiny models for the embedded benchmark.

    python -m semiovs_jax.ovs.train --config=configs/ovs_sed_shapes.py --workdir=runs/ovs_sed_shapes

`config.kind` is "sed" or "maskclip". The command writes one weight file; set `config.ovs.weights` to its path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from semiovs_jax.config_ranges import refuse_ranges
from semiovs_jax.ovs import current_name
from semiovs_jax.ovs.options import check_choices
from semiovs_jax.ovs.training.maskclip import train_maskclip
from semiovs_jax.ovs.training.sed import train_sed
from semiovs_jax.runtime.command import run_command
from semiovs_jax.runtime.program import other_command

KINDS: dict[str, Callable[[ml_collections.ConfigDict, str | Path], Path]] = {
    "maskclip": train_maskclip,
    "sed": train_sed,
}


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
    """Trains the model that `config.kind` names and writes its weights.

    Args:
      config: the whole config of the experiment.
      workdir: folder of checkpoints and weights.

    Returns:
      The path of the weights.

    Raises:
      InputError: numbers out of range, an unknown kind, or as the training of that kind.
      Stopped: a signal has stopped the training of a SED; its checkpoint is saved.
    """
    refuse_ranges(config)
    kind = current_name("config.kind", config.kind)
    check_choices("config", {"kind": kind}, {"kind": KINDS})
    return KINDS[kind](config, workdir)


def main(flags: Any) -> None:
    """Trains with `flags.config` in `flags.workdir`."""
    import jax

    path = train(flags.config, flags.workdir)
    if jax.process_index() == 0:
        print(f"next: {other_command('label', '--config=FILE', f'--config.ovs.weights={path}')}")


if __name__ == "__main__":
    kept = "checkpoints that are written are kept; the same command continues from them"
    run_command(main, kept=kept, keys="ovs_sed_shapes.py")
