"""Tests the paper's claims on the embedded benchmark: python -m semiovs_jax.benchmarks.claims --workdir=runs/claims.

Trains each row with several seeds, prints mean and standard deviation of the last and the best mIoU and which claims
hold, and draws them. The exit status is 1 if a claim does not hold. If it is killed and started again, it continues
with the interrupted run. It takes hours: `--earlier` takes over what other machines have finished.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags

from data_pipelines.command import closed_output_ends, command_end
from data_pipelines.errors import InputError
from data_pipelines.files import whole_file
from semiovs_jax.benchmarks.claims.judge import Results, Run, format_results, judge
from semiovs_jax.benchmarks.claims.picture import draw_claims
from semiovs_jax.benchmarks.claims.rows import ROWS, fingerprint, row_config, write_data
from semiovs_jax.runtime.command import set_up_logging, tune_process

_GROUPS = sorted({row.group for row in ROWS.values()})


def read_runs(paths: Sequence[Path]) -> dict[tuple[str, str], Run]:
    """The runs in these claims.json, by row and fingerprint.

    Raises:
      InputError: a file is missing, or is none.
    """
    found: dict[tuple[str, str], Run] = {}
    for path in paths:
        try:
            results = json.loads(path.read_text(encoding="utf-8"))["runs"]
            found |= {(name, run["fingerprint"]): run for name, runs in results.items() for run in runs}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: not a claims.json of this command ({error!r}); leave it out") from error
    return found


def run_row(name: str, config: ml_collections.ConfigDict, workdir: Path) -> Run:
    """Trains one row with one seed; a finished run is checked, and left as it is."""
    from semiovs_jax.train import train_and_evaluate

    folder = workdir / re.sub(r"[^a-z0-9.]+", "_", name.lower()) / f"seed{config.seed}"
    train_and_evaluate(config, folder)
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "seed": config.seed,
        "last": found["last"]["miou"],
        "best": found["best"]["miou"],
        "seconds": found["seconds_since_start"],
        "fingerprint": fingerprint(config),
    }


def run_rows(
    workdir: Path, seeds: int, groups: Collection[str], known: Mapping[tuple[str, str], Run]
) -> dict[str, list[Run]]:
    """Trains the rows of `groups` with each seed, but for the runs that are known; writes claims.json after each.

    Seeds are in the outer loop: an unfinished benchmark already compares all rows.

    Returns:
      All runs by row, the known ones of other groups, too.
    """
    runs = [(name, row_config(row, seed)) for seed in range(seeds) for name, row in ROWS.items()]
    found = [known.get((name, fingerprint(config))) for name, config in runs]
    left = [i for i, (name, _) in enumerate(runs) if found[i] is None and ROWS[name].group in groups]
    if left:
        write_data()
    for i in left:
        name, config = runs[i]
        print(f"{name}, seed {config.seed}", flush=True)
        found[i] = run_row(name, config, workdir)
        _write(_by_row(runs, found), workdir / "claims.json")
    results = _by_row(runs, found)
    _write(results, workdir / "claims.json")
    return results


def _by_row(runs: Iterable[tuple[str, Any]], found: Iterable[Run | None]) -> dict[str, list[Run]]:
    """The runs that are there, of each row."""
    results: dict[str, list[Run]] = {name: [] for name in ROWS}
    for (name, _), run in zip(runs, found, strict=True):
        if run is not None:
            results[name].append(run)
    return results


def _write(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps({"runs": results, "holds": judge(results)}, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    """Runs the rows with all seeds and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    set_up_logging()
    workdir = Path(flags.FLAGS.workdir)
    with command_end("runs and checkpoints that are written are kept; the same command continues from them"):
        known = read_runs([Path(path) for path in flags.FLAGS.earlier])
        results = run_rows(workdir, flags.FLAGS.seeds, flags.FLAGS.groups, known)
    print(format_results(results))
    holds = judge(results)
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
    flags.DEFINE_list("earlier", [], "claims.json of other machines, whose runs of the same configs are taken over.")
    flags.register_validator("groups", lambda groups: set(groups) <= set(_GROUPS), f"Of {', '.join(_GROUPS)}.")
    with closed_output_ends():
        app.run(main)
