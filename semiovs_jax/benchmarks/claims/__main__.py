"""Tests the paper's claims on the embedded benchmark: python -m semiovs_jax.benchmarks.claims --workdir=runs/claims.

Trains each row with several seeds, prints mean and standard deviation of the last and the best mIoU and which claims
hold, and draws them. The exit status is 1 if a claim does not hold. If it is killed and started again, it continues
with the interrupted run.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from data_pipelines.command import closed_output_ends, command_end
from semiovs_jax.benchmarks.claims.judge import format_results, judge
from semiovs_jax.benchmarks.claims.picture import draw_claims
from semiovs_jax.benchmarks.claims.rows import ROWS, Row, row_config, write_data
from semiovs_jax.runtime.command import set_up_logging, tune_process

_GROUPS = sorted({row.group for row in ROWS.values()})


def run_row(name: str, row: Row, seed: int, workdir: Path) -> dict[str, float]:
    """Trains one row with one seed; returns the last and the best mIoU and the seconds.

    A finished run is checked, and left as it is.
    """
    from semiovs_jax.train import train_and_evaluate

    folder = workdir / re.sub(r"[^a-z0-9.]+", "_", name.lower()) / f"seed{seed}"
    train_and_evaluate(row_config(row, seed), folder)
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "last": found["last"]["miou"],
        "best": found["best"]["miou"],
        "seconds": found["seconds_since_start"],
    }


def main(argv: Sequence[str]) -> None:
    """Runs the rows with all seeds and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    set_up_logging()
    workdir, groups = Path(flags.FLAGS.workdir), flags.FLAGS.groups
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    with command_end("runs and checkpoints that are written are kept; the same command continues from them"):
        write_data()
        # Seeds in the outer loop: an unfinished benchmark already compares all rows.
        for seed in range(flags.FLAGS.seeds):
            for name, row in ROWS.items():
                if row.group in groups:
                    print(f"{name}, seed {seed}", flush=True)
                    results[name].append(run_row(name, row, seed, workdir))
            print(format_results(results), flush=True)
    holds = judge(results)
    (workdir / "claims.json").write_text(json.dumps({"runs": results, "holds": holds}, indent=2), encoding="utf-8")
    draw_claims(results, workdir / "claims.png")
    for claim, held in holds.items():
        print(f"{'holds' if held else 'does not hold'}: {claim}")
    print(f"{workdir}: claims.json, claims.png")
    sys.exit(0 if all(holds.values()) else 1)


if __name__ == "__main__":
    tune_process()
    flags.DEFINE_string("workdir", "runs/claims", "Folder of the runs, of claims.json and of claims.png.")
    flags.DEFINE_integer("seeds", 5, "Number of seeds of each row.", lower_bound=1)
    flags.DEFINE_list("groups", _GROUPS, f"Of {', '.join(_GROUPS)}: the rows that are run.")
    flags.register_validator("groups", lambda groups: set(groups) <= set(_GROUPS), f"Of {', '.join(_GROUPS)}.")
    with closed_output_ends():
        app.run(main)
