"""The paper's claims on the embedded benchmark: python -m semiovs_jax.benchmarks.claims --workdir=runs/claims.

Trains each row of the table below with several seeds on "shapes", prints mean and standard deviation of the last and
the best mIoU, and exits with status 1 unless SemiOVS on each method beats that method without OVS labels by more than
both standard deviations. Two rows are for comparison only: a threshold on OVS confidence, and labels of MaskCLIP
instead of SED. If it is killed and started again, it continues with the interrupted run.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags

from data_pipelines.command import closed_output_ends, command_end
from semiovs_jax.runtime.command import set_up_logging, tune_process
from semiovs_jax.runtime.config_files import load_config

OURS = "SemiOVS"
THRESHOLD = 0.7  # of OVS confidence

# PrevMatch takes a snapshot whenever an evaluation is the best so far, and evaluates after every epoch.
_PREVMATCH = {"method.name": "prevmatch", "train.eval_every_steps": 0}

# SemiVL at the size of the shipped CLIP, which is its backbone, its frozen labeler and its text tower.
_SEMIVL = {
    "method.name": "semivl",
    "model.backbone": "clip_vit_shapes",
    "model.weights": "shapes_clip",
    "model.random_init": False,
    "clip.weights": "shapes_clip",
    "clip.vocabulary": "shapes",
    "clip.class_prompt": "{}",
    "clip.layers": "",
    "data.crop_size": 64,
    "train.steps": 200,  # a third of the other rows, because a step takes three times as long
    "train.eval_every_steps": 100,
    "train.checkpoint_every_steps": 100,
    "optim.name": "adamw",
    "optim.learning_rate": 1e-4,
    "optim.backbone_multiplier": 1.0,
    "optim.head_multiplier": 10.0,
    "optim.weight_decay": 0.01,
    "method.ood_weight": 0.5,
    "eval.window": 64,
    "eval.stride": 48,
}

# The changes of each row to `configs/demo.py`.
ROWS: dict[str, dict[str, Any]] = {
    "supervised": {"method.name": "supervised", "method.ood": "none"},
    "UniMatch": {"method.ood": "none"},
    "UniMatch, OOD as unlabeled": {"method.ood": "unlabeled"},
    f"SemiOVS, OVS confidence >= {THRESHOLD}": {"method.ood": "ovs", "method.ovs_threshold": THRESHOLD},
    "SemiOVS, MaskCLIP labels": {
        "method.ood": "ovs",
        "ovs.name": "maskclip",
        "ovs.weights": "shapes_clip",
        "ovs.image_size": 112,
        "ovs.labels_dir": "data/shapes/ovs_maskclip",
    },
    OURS: {"method.ood": "ovs"},
    "PrevMatch": {**_PREVMATCH, "method.ood": "none"},
    f"{OURS} on PrevMatch": {**_PREVMATCH, "method.ood": "ovs"},
    "SemiVL": {**_SEMIVL, "method.ood": "none"},
    f"{OURS} on SemiVL": {**_SEMIVL, "method.ood": "ovs"},
}

# For each row with OVS labels, the rows that it must beat.
CLAIMS = {
    OURS: ("supervised", "UniMatch", "UniMatch, OOD as unlabeled"),
    f"{OURS} on PrevMatch": ("PrevMatch",),
    f"{OURS} on SemiVL": ("SemiVL",),
}


def row_config(changes: Mapping[str, Any], seed: int) -> ml_collections.ConfigDict:
    """The locked config of `configs/demo.py` with the changes of a row and a seed."""
    config = load_config("configs/demo.py")
    config.update_from_flattened_dict({**changes, "seed": seed, "train.panel_images": 0})
    return config.lock()


def run_row(name: str, seed: int, workdir: Path) -> dict[str, float]:
    """Trains one row with one seed, unless it is finished; returns the last and the best mIoU and the seconds."""
    from semiovs_jax.train import train_and_evaluate

    folder = workdir / re.sub(r"[^a-z0-9.]+", "_", name.lower()) / f"seed{seed}"
    result = folder / "result.json"
    if not result.exists():
        train_and_evaluate(row_config(ROWS[name], seed), folder)
    found = json.loads(result.read_text(encoding="utf-8"))
    return {
        "last": found["last"]["miou"],
        "best": found["best"]["miou"],
        "seconds": found["seconds_since_start"],
    }


def format_results(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Formats a table: mean and sample standard deviation over seeds, mIoU in percent."""
    width = max(map(len, results))
    lines = [f"{'mIoU (%)':<{width}}   last          best          seconds a run"]
    for name, runs in results.items():
        cells = [f"{100 * mean:5.2f} ± {100 * std:4.2f}" for mean, std in (_spread(runs, k) for k in ("last", "best"))]
        lines.append(f"{name:<{width}}   {'  '.join(cells)}  {_spread(runs, 'seconds')[0]:8.0f}")
    return "\n".join(lines)


def claims_that_hold(results: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, bool]:
    """For each key of `CLAIMS`, whether it beats all its rows in last and best mIoU by more than both deviations."""
    return {
        ours: all(_beats(results[ours], results[name], key) for name in others for key in ("last", "best"))
        for ours, others in CLAIMS.items()
    }


def _beats(ours: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], key: str) -> bool:
    (mean, spread), (other, other_spread) = _spread(ours, key), _spread(others, key)
    return mean - other > max(spread, other_spread)


def _spread(runs: Sequence[Mapping[str, float]], key: str) -> tuple[float, float]:
    values = np.array([run[key] for run in runs])
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def main(argv: Sequence[str]) -> None:
    """Runs all rows with all seeds and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    set_up_logging()
    workdir = Path(flags.FLAGS.workdir)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    with command_end("runs and checkpoints that are written are kept; the same command continues from them"):
        # Seeds in the outer loop: an unfinished benchmark already compares all rows.
        for seed in range(flags.FLAGS.seeds):
            for name in ROWS:
                print(f"{name}, seed {seed}", flush=True)
                results[name].append(run_row(name, seed, workdir))
            print(format_results(results), flush=True)
    holds = claims_that_hold(results)
    (workdir / "claims.json").write_text(json.dumps({"runs": results, "holds": holds}, indent=2), encoding="utf-8")
    for ours, held in holds.items():
        print(f"{ours} above {', '.join(CLAIMS[ours])} by more than the deviations: {'yes' if held else 'no'}")
    sys.exit(0 if all(holds.values()) else 1)


if __name__ == "__main__":
    tune_process()
    flags.DEFINE_string("workdir", "runs/claims", "Folder of the runs and of claims.json.")
    flags.DEFINE_integer("seeds", 3, "Number of seeds of each row.", lower_bound=1)
    with closed_output_ends():
        app.run(main)
