"""Measures our train step beside PyTorch's on this device: python -m semiovs_jax.benchmarks.step --json=step.json.

Each row is a method, a model, sizes and a precision. Both sides start from the same weights and get the same views; if
their losses differ, nothing is timed. Each side is a process of its own. They take turns, a round of steps each, and
the table has the ratios of the rounds. Rows are added to the file of --json as they are measured. Started again with
the same file, the command measures the rows that are missing. The exit status is 1 if a row has failed.

Needs PyTorch (pip install semiovs-jax[bench]), or --only=ours. Weights are random, images noise; no file is read.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from data_pipelines.command import command_end
from data_pipelines.errors import InputError
from semiovs_jax.benchmarks.step.cases import COMPILED, DEFAULTS, EAGER, METHODS, OURS, PRECISIONS, Case, Choice
from semiovs_jax.benchmarks.step.table import LEGEND, format_table
from semiovs_jax.benchmarks.turns import Worker, WorkerError, take_turns
from semiovs_jax.models.remat import REMATS
from semiovs_jax.runtime.command import tune_process

_WORKER = "semiovs_jax.benchmarks.step.worker"
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # on a GPU, ours leaves memory to the other sides
_FORMS = {"cpu": (EAGER,), "gpu": (EAGER, COMPILED)}  # by platform


class LossError(Exception):
    """The sides have different losses on the same views."""


@dataclasses.dataclass
class Results:
    """The rows measured so far, in a file.

    Attributes:
      path: the file, JSON; None for none.
      environment: the device and the versions, the same for all rows.
      rows: of `measure_case`.
    """

    path: Path | None
    environment: dict[str, Any]
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None, environment: dict[str, Any]) -> "Results":
        """With the rows of the file, if there is one.

        Raises:
          InputError: the rows of the file are of another environment.
        """
        if path is None or not path.exists():
            return cls(path, environment)
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["environment"] != environment:
            raise InputError(
                f"{path}: its rows were measured in {found['environment']}, and this is {environment}; "
                "give another file to --json"
            )
        return cls(path, environment, found["rows"])

    def has(self, case: Case, sides: Iterable[str]) -> bool:
        """Whether there is a row of the case with all of the sides."""
        wanted = dataclasses.asdict(case)
        return any(row["case"] == wanted and set(sides) <= row["rounds"].keys() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row, in place of one of the same case, and writes the file."""
        self.rows = [*(old for old in self.rows if old["case"] != row["case"]), row]
        if self.path is not None:
            written = self.path.with_name(f"{self.path.name}.new")
            content = {"environment": self.environment, "rows": self.rows}
            written.write_text(json.dumps(content, indent=1), encoding="utf-8")
            written.replace(self.path)


def measure_case(
    case: Case,
    sides: Sequence[str],
    device: str,
    rounds: int,
    steps: int,
    *,
    whole: bool = True,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Measures a case.

    Args:
      case: what is measured.
      sides: `OURS` and forms of the step in PyTorch.
      device: of PyTorch, "cpu" or "cuda".
      rounds: number of rounds.
      steps: of each side in a round.
      whole: whether our whole step is measured, too, or the update alone.
      trace: folder for a profile of each side, after the rounds; None for none.

    Returns:
      Plain data: the case, the images of a step, the date, and what each side's `prepare`, `measure` and `finish` have
      returned, the second for each round.

    Raises:
      WorkerError: a side has failed.
      LossError: the first losses differ; nothing is timed then.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        given = {"case": dataclasses.asdict(case), "folder": folder, "device": device}
        workers = {side: stack.enter_context(start_worker(side)) for side in sides}
        for side in sides:
            if side != OURS:
                workers[side].call("build", **given)
        # Views are always ours; without our side, its process leaves before the others compute.
        with contextlib.nullcontext(workers[OURS]) if OURS in workers else start_worker(OURS) as ours:
            images = ours.call("build", **given)
        prepared = {side: worker.call("prepare", folder=folder, whole=whole) for side, worker in workers.items()}
        check_losses({side: found["loss"] for side, found in prepared.items()}, case)
        turns = take_turns(workers, rounds, "measure", steps=steps)
        row = {
            "case": given["case"],
            "date": datetime.date.today().isoformat(),
            "images": images,
            "prepared": prepared,
            "rounds": turns,
            "finished": {side: worker.call("finish") for side, worker in workers.items()},
        }
        if trace:
            _write_traces(workers, trace / str(case).replace(" ", "_"))
        return row


def _write_traces(workers: Mapping[str, Worker], folder: Path) -> None:
    """Writes a profile of each side to a folder of its name; what cannot be profiled is told, and its row stays."""
    for side, worker in workers.items():
        try:
            worker.call("trace", folder=str(folder / side))
        except WorkerError as error:
            print(f"no profile: {error}", file=sys.stderr, flush=True)


def check_losses(losses: Mapping[str, float], case: Case) -> None:
    """Raises `LossError` if the losses of the sides differ by more than rounding in the case's precision."""
    first, *others = losses.values()
    tolerance = PRECISIONS[case.precision].loss_tolerance
    if not all(math.isclose(first, other, rel_tol=tolerance) for other in others):
        raise LossError(f"different losses on the same views: {dict(losses)}")


def start_worker(side: str) -> Worker:
    """The process of a side; variables of the user's environment are kept."""
    return Worker(_WORKER, [side], {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})


def describe(sides: Iterable[str]) -> dict[str, Any]:
    """The device, its platform, and the versions, as the sides know them."""
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for side in sides:
        with start_worker(side) as worker:
            found |= worker.call("describe")
    return found


def measure(results: Results, cases: Iterable[Case], sides: Sequence[str], arguments: Any) -> list[Case]:
    """Measures the cases without a row and prints the line of each; returns those that have failed."""
    failed = []
    device = "cuda" if results.environment["platform"] == "gpu" else "cpu"
    for case in cases:
        if results.has(case, sides):
            continue
        try:
            row = measure_case(
                case,
                sides,
                device,
                arguments.rounds,
                arguments.steps,
                whole=not arguments.update_only,
                trace=Path(arguments.trace) if arguments.trace else None,
            )
        except (WorkerError, LossError) as error:
            print(f"{case}: {error}", file=sys.stderr, flush=True)
            failed.append(case)
            continue
        results.add(row)
        print(format_table([row]), flush=True)
    return failed


def choose(platform: str, arguments: Any) -> tuple[Choice, Sequence[str]]:
    """The cases and the sides of the flags; what is left out is that of the platform."""
    default = DEFAULTS[platform]
    ood = [name == "ovs" for name in arguments.ood or ()]
    choice = Choice(
        arguments.methods or default.methods,
        ood or default.ood,
        arguments.backbones or default.backbones,
        [int(size) for size in arguments.crop_sizes or default.crop_sizes],
        [int(size) for size in arguments.batch_sizes or default.batch_sizes],
        arguments.precisions or default.precisions,
        arguments.remats or default.remats,
    )
    forms = arguments.torch_forms or _FORMS[platform]
    sides = {"": [OURS, *forms], "ours": [OURS], "torch": list(forms)}
    return choice, sides[arguments.only or ""]


def main(argv: Sequence[str]) -> None:
    """Measures what is missing and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    arguments = flags.FLAGS
    has_torch = importlib.util.find_spec("torch") is not None
    if arguments.only != "ours" and not has_torch:
        raise InputError("PyTorch is missing: install it (pip install semiovs-jax[bench]), or pass --only=ours")
    environment = describe([OURS, EAGER] if has_torch else [OURS])
    choice, sides = choose("cpu" if environment["platform"] == "cpu" else "gpu", arguments)
    results = Results.open(Path(arguments.json) if arguments.json else None, environment)
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    print(f"{datetime.date.today()}, {arguments.rounds} rounds of {arguments.steps} steps\n{LEGEND}\n", flush=True)
    failed = measure(results, choice.cases(), sides, arguments)
    wanted = [dataclasses.asdict(case) for case in choice.cases()]
    print(f"\n{format_table([row for row in results.rows if row['case'] in wanted])}")
    if failed:
        sys.exit(1)


def _define_flags() -> None:
    _define_choices("methods", METHODS)
    _define_choices("ood", ("none", "ovs"), "without OOD images, or with cached labels")
    flags.DEFINE_list("backbones", None, "Of the methods but SemiVL: resnet50, resnet101.")
    _define_sizes("crop_sizes", "Sides of the images, in pixels.")
    _define_sizes("batch_sizes", "Images of each stream.")
    _define_choices("precisions", tuple(PRECISIONS))
    _define_choices("remats", REMATS, "config.model.remat of our step")
    _define_choices("torch_forms", (EAGER, COMPILED), "the faster one counts")
    flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "Steps of each side in a round.", lower_bound=1)
    flags.DEFINE_enum("only", None, ["ours", "torch"], "Measure one side alone.")
    flags.DEFINE_bool("update_only", False, "Measures our update without the whole step: half of the compilation.")
    flags.DEFINE_string("trace", None, "Folder for a profile of each side, of every case.")
    flags.DEFINE_string("json", None, "File of the rows, which a later call goes on with.")


def _define_sizes(name: str, meaning: str) -> None:
    flags.DEFINE_list(name, None, meaning)
    flags.register_validator(name, lambda values: all(map(str.isdecimal, values or ())), "expected integers: 161,321")


def _define_choices(name: str, choices: Sequence[str], meaning: str = "") -> None:
    """A flag whose value is a list of some of `choices`."""
    message = f"Of {', '.join(choices)}{meaning and ': '}{meaning}."
    flags.DEFINE_list(name, None, message)
    flags.register_validator(name, lambda values: set(values or ()) <= set(choices), message)


if __name__ == "__main__":
    tune_process()
    _define_flags()
    with command_end("rows that are measured are in the file of --json; the same command measures the others"):
        app.run(main)
