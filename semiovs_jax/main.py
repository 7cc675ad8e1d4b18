"""Trains, or goes on training: python -m semiovs_jax.main --config=configs/voc92.py --workdir=runs/voc92."""

from typing import Any

from semiovs_jax.runtime.command import run_command


def main(flags: Any) -> None:
    """Runs `flags.config` in `flags.workdir`."""
    from semiovs_jax.train import train_and_evaluate

    train_and_evaluate(flags.config, flags.workdir, flags.fork_from)


if __name__ == "__main__":
    from absl import flags as absl_flags

    absl_flags.DEFINE_string(
        "fork_from", None, "Workdir of another run, or one of its checkpoints: starts a new run from its state."
    )
    run_command(main, kept="checkpoints and labels that are written are kept; the same command continues from them")
