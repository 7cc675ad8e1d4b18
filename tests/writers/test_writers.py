"""Writers are found by name, checked before a run, and none of their services ends a run."""

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import semiovs_jax.writers
from configs import common
from data_pipelines.datasets import dataset_info
from semiovs_jax.config_checks import inspect
from semiovs_jax.reporting import Report
from semiovs_jax.writers import RunFacts, WriterError, Writers, names, writer_faults
from tests.experiment import shrunk_demo

NEW = """
from semiovs_jax.writers.base import WriterError

class Lines:
    def __init__(self, path):
        self.path = path
    def __getattr__(self, name):
        def write(*args):
            if name == "add_scalars" and args[1] == 3:
                raise WriterError("the line is cut")
            with self.path.open("a") as file:
                print(name, *args, file=file)
        return write

def faults():
    return ["config.train.writers: lines: there is no paper; buy some"]

def open_writer(facts):
    return Lines(facts.workdir / "lines")
"""


@pytest.fixture
def new_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file `lines.py` beside the writers; nothing else is edited."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "lines.py").write_text(NEW)
    monkeypatch.setattr(semiovs_jax.writers, "__path__", [*semiovs_jax.writers.__path__, str(tmp_path / "more")])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("semiovs_jax.writers.lines", None)


def test_the_default_is_tensorboard_and_names_are_files():
    assert common.semiovs_unimatch().train.writers == "tensorboard"
    assert {"tensorboard", "wandb", "mlflow"} <= set(names())
    assert writer_faults("tensorboard") == writer_faults("") == []


def test_an_unknown_name_is_told_with_those_that_there_are():
    (fault,) = writer_faults("tensorboard, wandbb")
    assert fault.startswith("config.train.writers='tensorboard, wandbb': no writer 'wandbb' (did you mean wandb?)")
    assert "mlflow, tensorboard, wandb" in fault


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_with_all_other_faults_before_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *more: None if n == name else find(n, *more))
    faults = inspect(shrunk_demo(tmp_path, **{"train.writers": f"tensorboard,{name}", "batch_size": 0})).faults
    assert [fault for fault in faults if "batch_size" in fault]
    (fault,) = [fault for fault in faults if "train.writers" in fault]
    assert f"{name} is not installed; run pip install 'semiovs-jax[{name}]'" in fault


@pytest.mark.usefixtures("new_writer")
def test_a_new_writer_is_a_new_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert writer_faults("lines") == ["config.train.writers: lines: there is no paper; buy some"]
    logging.getLogger("semiovs_jax").propagate = True
    with Report(
        tmp_path,
        dataset_info("shapes"),
        total_steps=4,
        images_per_step=1,
        log_every_steps=1,
        writers="lines,tensorboard",
        config={"seed": 1},
    ) as report:
        for step in range(1, 5):
            report.step(step, {"loss": step / 10})
        report.finish("whole images")
    lines = (tmp_path / "lines").read_text().splitlines()
    assert lines[0].startswith("add_scalars {'train/loss': 0.1")
    assert [line.split()[-1] for line in lines] == ["1", "2"]
    assert "lines: cannot be written (the line is cut); this start goes on without it" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_service_that_is_lost_when_a_writer_opens_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def open_writer(facts: RunFacts):
        raise WriterError("no route to host")

    module = ModuleType("semiovs_jax.writers.far")
    module.open_writer = open_writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    logging.getLogger("semiovs_jax").propagate = True
    writers = Writers("far,tensorboard", RunFacts(tmp_path, 0, {}))
    assert list(writers.open) == ["tensorboard"]
    assert "far: cannot be written (no route to host)" in caplog.text
    writers.close(finished=True)
    writers.close(finished=False)


def test_all_are_closed_even_if_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    closed = []

    class Tape:
        def __init__(self, name: str):
            self.name = name

        def close(self, finished: bool) -> None:
            closed.append((self.name, finished))
            raise OSError(28, "No space left on device")

    writers = Writers("", RunFacts(tmp_path, 0, {}))
    writers.open = {name: Tape(name) for name in "ab"}  # type: ignore[misc]
    with pytest.raises(OSError, match="No space"):
        writers.close(finished=True)
    assert sorted(closed) == [("a", True), ("b", True)]


def test_a_run_of_an_earlier_version_had_tensorboard_and_may_change_to_others():
    from semiovs_jax.runs.changes import Run, refusals

    config = json.loads(json.dumps(common.semiovs_unimatch().to_dict()))
    earlier = json.loads(json.dumps(config))
    del earlier["train"]["writers"]
    config["train"]["writers"] = "wandb"
    assert refusals(Run(earlier, {}), Run(config, {})) == []
