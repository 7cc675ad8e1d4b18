r"""Disturbs the project's commands, one fault a trial, and prints how they end.

    python -m tests.campaign --trials=300 --jobs=2 --resume=/tmp/campaign
    python -m tests.campaign --tasks=supervised --faults=SIGTERM --trials=10

A trial starts a command on a few images (`tasks`), disturbs it (`faults`), goes on with the same command until it
finishes, and checks what must be true (`invariants`): no step is lost that a checkpoint or a signal promised; the
result equals that of an undisturbed run, or the command refuses with a message; no traceback; no process, shared memory
or temporary file is left; exit status 0 finished, 130 and 143 after signals, 2 refused.

Trial N of a seed is always the same fault at the same share of the same phase. Results are lines of results.jsonl in
the folder of the campaign; started again with the same folder, it goes on. Folders of trials with a failure are kept
in `failed`. Each job has its own mounts (`unshare`): a disk of its own, which can be small, and its own shared memory.
Where the system forbids that, there is one job, a limit of the size of files stands for the full disk, and shared
memory is not checked.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.campaign.faults import FAULTS, Fault
from tests.campaign.invariants import INVARIANTS
from tests.campaign.room import is_isolated, isolation
from tests.campaign.table import format_table
from tests.campaign.tasks import TASKS
from tests.campaign.trial import Campaign, Trial


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; returns 1 if an invariant is broken."""
    # A shell starts programs in the background with SIGINT ignored, which the commands would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = _parse(arguments)
    faults = selected(flags.tasks, flags.faults)
    if flags.job is not None:
        _work(flags, faults)
        return 0
    folder = flags.resume or Path(tempfile.mkdtemp(prefix="semiovs_campaign_"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(faults)} kinds of faults; results in {folder}", file=sys.stderr)
    _start_jobs(flags, [*arguments, f"--resume={folder}"])
    results = _results(folder)
    print(format_table(results, INVARIANTS))
    return int(any(result["failures"] for result in results))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description="Runs the campaign of faults.")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no trial after this time")
    parser.add_argument("--resume", type=Path, help="folder of the campaign; default: a new temporary one")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--tasks", default="", help=f"comma-separated, of: {', '.join(TASKS)}; default: all")
    parser.add_argument("--faults", default="", help="faults whose row in the table contains this; default: all")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def selected(tasks: str, rows: str) -> list[Fault]:
    """The faults of some tasks whose row contains a text."""
    names = tasks.split(",") if tasks else list(TASKS)
    return [fault for fault in FAULTS if fault.task in names and rows in fault.row]


def fault_of(faults: Sequence[Fault], seed: int, number: int) -> Fault:
    """The fault of a trial: each fault once, in random order, before one comes again."""
    turn, place = divmod(number, len(faults))
    order = list(range(len(faults)))
    random.Random(f"{seed} {turn} order").shuffle(order)
    return faults[order[place]]


def _start_jobs(flags: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Runs the jobs, and waits for them."""
    prefix = isolation()
    jobs = flags.jobs if prefix else 1
    deadline = time.time() + 60 * flags.minutes
    command = [*prefix, sys.executable, "-m", "tests.campaign", *arguments, f"--jobs={jobs}"]
    environment = os.environ | {"SEMIOVS_CAMPAIGN_DEADLINE": str(deadline)}
    running = [subprocess.Popen([*command, f"--job={job}"], env=environment) for job in range(jobs)]
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.terminate()


def _work(flags: argparse.Namespace, faults: Sequence[Fault]) -> None:
    """Runs every trial of one job: those whose number modulo the jobs is that of the job."""
    campaign = Campaign(flags.resume.absolute())
    done = {result["number"] for result in _results(campaign.folder)}
    deadline = float(os.environ["SEMIOVS_CAMPAIGN_DEADLINE"])
    for number in range(flags.job, flags.trials, flags.jobs):
        if number not in done and time.time() < deadline:
            result = run_trial(campaign, fault_of(faults, flags.seed, number), number, flags.seed)
            with (campaign.folder / "results.jsonl").open("ab", buffering=0) as file:
                file.write(f"\n{json.dumps(result)}\n".encode())  # a killed job leaves a part of a line
            print(
                f"{number}: {result['row']}, {result['task']}: {result['verdict']} {result['failures']}",
                file=sys.stderr,
            )


def run_trial(campaign: Campaign, fault: Fault, number: int, seed: int) -> dict:
    """Runs one trial; returns its result as plain data."""
    started = time.monotonic()
    task = TASKS[fault.task]
    campaign.prepare(task)
    workers = random.Random(f"{seed} {number} workers").choice((0, 0, 2)) if task.takes_workers else 0
    with Trial(campaign, task, str(number), seed, workers) as trial:
        fault.run(trial)
    return {
        "number": number,
        "row": fault.row,
        "task": fault.task,
        "verdict": trial.verdict,
        "failures": trial.failures,
        "notes": trial.notes,
        "isolated": is_isolated(),
        "seconds": round(time.monotonic() - started, 1),
    }


def _results(folder: Path) -> list[dict]:
    path, results = folder / "results.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            result = json.loads(line)
            results[result["number"]] = result
    return [results[number] for number in sorted(results)]


if __name__ == "__main__":
    sys.exit(main())
