"""One config with several seeds: a run each, one after the other, and the spread of their scores."""

import copy
import gc
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from data_pipelines.errors import Faults, InputError
from data_pipelines.files import as_path, replace_file
from data_pipelines.signals import Stopped
from semiovs_jax.config_ranges import range_faults
from semiovs_jax.reporting import comparison
from semiovs_jax.runs.folder import open_run
from semiovs_jax.runtime.program import other_command
from semiovs_jax.runtime.workdir import check_workdir, workdir_path
from semiovs_jax.train import train_and_evaluate

_SUMMARY = "seeds.json"

_logger = logging.getLogger(__name__)


def parse_seeds(text: str) -> list[int]:
    """The seeds of "0,1,2".

    Raises:
      InputError: a seed is not an integer, or is listed twice.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds={text}: expected integers with commas between them, such as --seeds=0,1,2") from None
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise InputError(f"--seeds={text}: listed twice: {', '.join(map(str, twice))}; list each seed once")
    return seeds


def train_seeds(
    config: ml_collections.ConfigDict, workdir: str | Path, seeds: Sequence[int], fork_from: str | Path | None = None
) -> None:
    """Trains a run with each seed in `workdir`/seed_N, then prints the spread of their mIoU.

    Finished runs are left as they are, and an interrupted one continues. `workdir`/seeds.json gets the summary.

    Args:
      config: an experiment; its own `seed` is not used.
      workdir: folder of the folders of the runs.
      seeds: the seeds.
      fork_from: see `train_and_evaluate`; each run starts from it.

    Raises:
      InputError: as `train_and_evaluate`, where it can be found before the first run; or there are several processes.
      Stopped: a signal has stopped a run; its checkpoint is saved.
    """
    if jax.process_count() > 1:
        raise InputError(
            "--seeds with --distributed: not supported; start a command for each seed, with --config.seed=N "
            "--workdir=RUN/seed_N, then one with --seeds and without --distributed, which sums up finished runs"
        )
    configs = [_with_seed(config, seed) for seed in seeds]
    folders = [str(as_path(workdir, "--workdir") / f"seed_{seed}") for seed in seeds]
    _refuse_folders(configs, folders, fork_from)
    check_workdir(workdir)
    for number, (run_config, folder) in enumerate(zip(configs, folders, strict=True), start=1):
        _logger.info("seed %d, run %d of %d: %s", run_config.seed, number, len(seeds), folder)
        late = train_and_evaluate(run_config, folder, fork_from)
        if late is not None and number < len(seeds):
            raise Stopped(late, f"after run {number} of {len(seeds)}")
        gc.collect()
        jax.clear_caches()  # the seed is a constant of the compiled step, so the next run compiles its own
    runs = comparison.read_runs(folders)
    path = workdir_path(workdir) / _SUMMARY
    replace_file(path, json.dumps(_summary(runs), indent=2) + "\n")
    _logger.info("%s", comparison.format_runs(runs))
    for warning in comparison.warnings(runs):
        _logger.warning("warning: %s", warning)
    _logger.info("wrote %s\nnext: %s", path, other_command("compare", *folders, "--out=FILE.png"))


def _with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    own = copy.deepcopy(config)
    own.seed = seed
    return own


def _refuse_folders(
    configs: Sequence[ml_collections.ConfigDict], folders: Sequence[str], fork_from: str | Path | None
) -> None:
    faults = Faults()
    for config, folder in zip(configs, folders, strict=True):
        with faults.collected():
            faults.add(range_faults(config))
        with faults.collected():
            open_run(config, folder, fork_from)
    faults.refuse()


def _summary(runs: Sequence[comparison.ComparedRun]) -> dict[str, Any]:
    """What seeds.json holds; mIoU as shares."""
    spreads = {name: comparison.spread_of(runs, name)._asdict() for name in comparison.EVALUATIONS}
    scores = [
        {"seed": run.config["seed"], "run": Path(run.name).name}
        | {name: _score(getattr(run, name)) for name in comparison.EVALUATIONS}
        for run in runs
    ]
    return {"protocol": runs[0].protocol, "miou": spreads, "runs": scores}


def _score(evaluation: Any) -> dict[str, Any] | None:
    return evaluation and {"step": evaluation["step"], "miou": evaluation["miou"]}
