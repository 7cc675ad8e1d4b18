"""Trains, or continues a run: python -m semiovs_jax.main --config=configs/demo.py --workdir=runs/demo.

Checks the config, its weights and its data, labels the out-of-distribution (OOD) images that have no label yet, then
trains, evaluates and saves. The same command continues a run that was stopped, and leaves a finished one as it is. A
workdir belongs to one config. --seeds=0,1,2 trains a run with each seed, --fork_from starts from the state of another
run.
"""

import logging
from typing import Any

from semiovs_jax.runtime.command import run_command
from semiovs_jax.runtime.program import other_command

COMMAND = "train"


def main(flags: Any) -> None:
    """Runs `flags.config` in `flags.workdir`, with each of `flags.seeds` if there are any."""
    if flags.seeds is not None:
        from semiovs_jax.seeds import parse_seeds, train_seeds

        train_seeds(flags.config, flags.workdir, parse_seeds(flags.seeds), flags.fork_from)
        return
    import jax

    from semiovs_jax.runtime.workdir import workdir_path
    from semiovs_jax.train import train_and_evaluate

    train_and_evaluate(flags.config, flags.workdir, flags.fork_from)
    if jax.process_index() == 0:
        logger, workdir = logging.getLogger(__name__), f"--workdir={flags.workdir}"
        written = sorted(path.name for path in workdir_path(flags.workdir).iterdir())
        logger.info("the run is in %s: %s", flags.workdir, ", ".join(written))
        logger.info("next: %s", other_command("evaluate", workdir))
        logger.info("  or: %s", other_command("predict", workdir, "--source=IMAGES", "--out=FOLDER"))


if __name__ == "__main__":
    from absl import flags as absl_flags

    absl_flags.DEFINE_string(
        "fork_from", None, "Workdir of another run, or one of its checkpoints: starts a new run from its state."
    )
    absl_flags.DEFINE_string(
        "seeds",
        None,
        "Such as 0,1,2: trains a run with each seed in WORKDIR/seed_N, then prints their mean scores.",
    )
    run_command(main, kept="checkpoints and labels that are written are kept; the same command continues from them")
