"""One trial: a task in a room, a fault, the same command until it finishes, and the invariants."""

import contextlib
import fcntl
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from data_pipelines.files import replace_file
from semiovs_jax.runtime.command import CPU_FLAGS
from tests.campaign import invariants
from tests.campaign.processes import MARK, SECONDS, Command, Outcome, end_marked
from tests.campaign.room import Room, used_kilobytes
from tests.campaign.tasks import TASKS, Task, saved_steps, write_inputs
from tests.compilation import FAST_COMPILATION

FRESH, HALF, DONE = "fresh", "half", "done"  # the folders of a task that trials start from

_POLL_SECONDS = 0.005


class Reference(NamedTuple):
    """The undisturbed runs of a task.

    Attributes:
        state: What they leave, see `invariants.state`.
        cold: Seconds from the start to each event of a run that compiles.
        warm: Those of a run that finds its programs in the compilation cache.
        kilobytes: What the fresh and the finished folder take on a disk.
    """

    state: Any
    cold: dict[str, float]
    warm: dict[str, float]
    kilobytes: list[int]


class Campaign:
    """The folder of a campaign.

    Attributes:
        folder: The folder.
        room: Where its commands run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.room = Room(folder / "room")

    def stage(self, task: Task, name: str) -> Path:
        """A kept folder of a task: FRESH, HALF (of an unfinished run) or DONE."""
        if name == FRESH and task.before:
            return self.stage(TASKS[task.before], DONE)
        return self.folder / "stages" / (name if name == FRESH else f"{task.name} {name}")

    def reference(self, task: Task) -> Reference:
        """The undisturbed runs of a task, run by `prepare`."""
        return Reference(**json.loads(self._reference_path(task).read_text()))

    def prepare(self, task: Task) -> None:
        """Runs a task undisturbed, twice, and once until its middle, unless that is done.

        Raises:
            RuntimeError: A run fails, or the two runs differ.
        """
        if task.before:
            self.prepare(TASKS[task.before])
        else:
            with self._locked("inputs"):
                if not self.stage(task, FRESH).exists():
                    write_inputs(self.stage(task, FRESH))
        with self._locked(task.name):
            if not self._reference_path(task).exists():
                self._run_undisturbed(task)

    def _run_undisturbed(self, task: Task) -> None:
        states, times, kilobytes = [], [], [used_kilobytes(self.stage(task, FRESH))]
        for name in ("cold", "warm"):
            with Trial(self, task, f"{task.name} {name}") as trial:
                trial.enter(FRESH)
                outcome, seen = trial.watch()
                if not outcome.finished:
                    raise RuntimeError(f"{task.name} fails undisturbed, {outcome.codes}: {outcome.err[-3000:]}")
                states.append(json.loads(json.dumps(invariants.state(task, self.room.folder, outcome))))
                times.append(seen)
                self._keep(task, DONE)
        if faults := invariants.differences(*states):
            raise RuntimeError(f"{task.name}: two undisturbed runs differ: {faults}")
        kilobytes.append(used_kilobytes(self.stage(task, DONE)))
        if task.half:
            with Trial(self, task, f"{task.name} {HALF}") as trial:
                trial.enter(FRESH)
                command = trial.start()
                trial.wait_for(command, task.half)
                command.send(signal.SIGKILL, group=True)
                command.wait()
                self._keep(task, HALF)
        self._reference_path(task).parent.mkdir(exist_ok=True)
        replace_file(self._reference_path(task), json.dumps(Reference(states[0], *times, kilobytes)._asdict()))

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One job at a time."""
        with (self.folder / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _keep(self, task: Task, name: str) -> None:
        target = self.stage(task, name)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.room.folder, target, ignore=shutil.ignore_patterns("tmp"))

    def _reference_path(self, task: Task) -> Path:
        return self.folder / "references" / f"{task.name}.json"


class Trial:
    """The commands of one trial, and what they broke.

    Attributes:
        campaign: The campaign.
        task: The task.
        random: Draws all that is not determined by the fault.
        folder: Where the commands run.
        failures: What is broken, by invariant.
        notes: What was done and seen, in order.
        verdict: "equal", "refused", "counted", "other input" or "missed".
        damaged: Steps of checkpoints that may be passed over.
    """

    def __init__(self, campaign: Campaign, task: Task, name: str, seed: int = 0, workers: int = 0):
        self.campaign = campaign
        self.task = task
        self.random = random.Random(f"{seed} {name}")
        self.folder = campaign.room.folder
        self.failures: dict[str, str] = {}
        self.notes: list[str] = []
        self.verdict = "missed"
        self.damaged: set[int] = set()
        self._mark = f"{campaign.folder}:{seed}:{name}"
        self._outputs = campaign.folder / "outputs" / name
        self._starts = 0
        self._workers = workers
        end_marked(self._mark)  # of a campaign that was killed
        shutil.rmtree(self._outputs, ignore_errors=True)

    @property
    def reference(self) -> Reference:
        return self.campaign.reference(self.task)

    def enter(self, stage: str, kilobytes: int | None = None) -> None:
        """Fills the room with a copy of a kept folder."""
        self.campaign.room.fill(self.campaign.stage(self.task, stage), kilobytes)
        (self.folder / "tmp").mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends what is left of the trial; keeps its folder if something is broken."""
        end_marked(self._mark)
        if self.failures:
            kept = self.campaign.folder / "failed" / self._outputs.name
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self.folder, kept / "room", symlinks=True)
            self._outputs.rename(kept / "outputs")
        self.campaign.room.clear()
        shutil.rmtree(self._outputs, ignore_errors=True)

    def start(
        self,
        *,
        cold: bool = False,
        devices: int | None = None,
        processes: int | None = None,
        preexec: Callable[[], None] | None = None,
    ) -> Command:
        """Starts the task's command.

        Args:
            cold: Whether to compile, with an empty compilation cache.
            devices: Simulated devices, if not the task's number.
            processes: Processes, if not the task's number.
            preexec: Called in each process before the command.
        """
        count = devices or self.task.devices
        flags = f"{CPU_FLAGS} --xla_force_host_platform_device_count={count} {FAST_COMPILATION}"
        environment = {
            MARK: self._mark,
            "TMPDIR": str(self.folder / "tmp"),
            "SEMIOVS_CACHE": str(self.folder / "tmp/embeddings"),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str((self.folder / "tmp" if cold else self.campaign.folder) / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._starts += 1
        workers = [f"--config.data.num_workers={self._workers}"] * bool(self._workers)
        outputs = self._outputs / f"start-{self._starts}"
        return Command(
            self.task, self.folder, outputs, environment, flags=workers, processes=processes, preexec=preexec
        )

    def watch(self) -> tuple[Outcome, dict[str, float]]:
        """Runs the command, and records when each event was first seen, in seconds after the start."""
        command = self.start()
        seen = {"spawned": 0.0}
        while command.running and time.monotonic() < command.started + SECONDS:
            now = time.monotonic() - command.started
            for event in self._events():
                seen.setdefault(event, now)
            time.sleep(_POLL_SECONDS)
        outcome = command.wait()
        seen["ended"] = time.monotonic() - command.started
        return outcome, seen

    def wait_for(self, command: Command, event: str) -> bool:
        """Waits for an event; returns whether the command still runs then."""
        while event != "spawned" and event not in self._events():
            if not command.running or time.monotonic() > command.started + SECONDS:
                return False
            time.sleep(_POLL_SECONDS)
        return command.running

    def reach(self, command: Command, phase: str, *, cold: bool = False) -> bool:
        """Waits for a random moment of a phase; returns whether the command still runs then."""
        times, past = self.reference.cold if cold else self.reference.warm, self._events()
        phases = [
            (begin, until)
            for begin, until in self.task.phases[phase]
            if begin in times and until in times and begin not in past
        ]
        begin, until = self.random.choice(phases or self.task.phases[phase])
        length, share = max(times.get(until, 0.0) - times.get(begin, 0.0), 0.02), self.random.random()
        self.notes.append(f"{share:.0%} of the way from {begin!r} to {until!r}")
        if not self.wait_for(command, begin):
            return False
        time.sleep(share * length)
        return command.running

    def end(self, command: Command, seconds: float = SECONDS) -> Outcome:
        """Waits for a command; checks what it printed and what it left running."""
        outcome = command.wait(seconds)
        self.notes.append(f"exit status {', '.join(map(str, outcome.codes))}")
        if outcome.hung:
            self.fail(invariants.EXIT_CODE, f"still running after {seconds:g} seconds")
        if traceback := invariants.traceback_of(outcome):
            self.fail(invariants.TRACEBACK, traceback)
        return outcome

    def go_on(
        self,
        *,
        may_refuse: bool = False,
        rounding: bool = False,
        devices: int | None = None,
        processes: int | None = None,
    ) -> Outcome:
        """Starts the command again, undisturbed, and checks where it continues and what it leaves.

        Args:
            may_refuse: Whether the command may end with status 2 and a message.
            rounding: Whether the numbers may differ by rounding.
            devices: Simulated devices, if not the task's number.
            processes: Processes, if not the task's number.
        """
        promised = max([step for step in saved_steps(self.folder) if step not in self.damaged], default=0)
        outcome = self.end(self.start(devices=devices, processes=processes))
        restored = invariants.restored_step(outcome)
        if restored is not None and restored < promised:
            self.fail(invariants.STEPS_LOST, f"continues after step {restored}, saved was {promised}")
        if outcome.finished:
            self.compare(outcome, rounding=rounding)
        elif outcome.refused and may_refuse:
            self.verdict = "refused"
            self.notes.append(outcome.err[outcome.err.index("error: ") :][:500])
        else:
            self.fail(invariants.EXIT_CODE, f"{outcome.codes} of an undisturbed command: {outcome.err[-1500:]}")
        return outcome

    def compare(self, outcome: Outcome, *, rounding: bool = False) -> None:
        """Compares what a finished command left with the undisturbed run."""
        try:
            found = json.loads(json.dumps(invariants.state(self.task, self.folder, outcome)))
        except (OSError, LookupError, ValueError) as error:
            return self.fail(invariants.EXIT_CODE, f"status 0, but not finished: {type(error).__name__}: {error}")
        if different := invariants.differences(self.reference.state, found, rounding=rounding):
            self.fail(invariants.DIFFERS, "; ".join(different[:5]))
        if self.verdict == "missed":
            self.verdict = "equal"
        if left := invariants.left_behind(self._mark, self.folder, self.task):
            self.fail(invariants.LEFT_BEHIND, "; ".join(left[:10]))

    def fail(self, invariant: str, detail: str) -> None:
        """Records that an invariant is broken."""
        self.failures.setdefault(invariant, detail)

    def _events(self) -> set[str]:
        try:
            return set(self.task.observe(self.folder))
        except OSError:  # a file was renamed meanwhile
            return set()
