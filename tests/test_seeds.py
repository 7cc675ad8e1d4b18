"""One config with several seeds."""

import json
import logging
import signal
import statistics
from pathlib import Path

import jax
import ml_collections
import pytest

from configs import demo
from data_pipelines.errors import InputError
from data_pipelines.signals import Stopped
from semiovs_jax import seeds, train
from semiovs_jax.ood_labels import label_ood_images
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.sharding import make_mesh
from tests.experiment import shrunk_demo
from tests.test_compare import write_run

BEST, LAST = (0.6, 0.5, 0.7), (0.4, 0.5, 0.45)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def made_up(config: ml_collections.ConfigDict, folder: str, _: object = None) -> None:
    """A run without training."""
    mious = {10: BEST[config.seed], 20: LAST[config.seed]}
    write_run(Path(folder), mious, seed=config.seed)


def test_each_seed_is_a_run_and_their_scores_are_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
):
    monkeypatch.setattr(seeds, "train_and_evaluate", made_up)
    config = demo.get_config().lock()
    seeds.train_seeds(config, tmp_path, [0, 1, 2])
    assert config.seed == demo.get_config().seed
    found = json.loads((tmp_path / "seeds.json").read_text())
    for name, scores in (("best", BEST), ("last", LAST)):
        mean, std = statistics.mean(scores), statistics.stdev(scores)
        assert found["miou"][name] == {"n": 3, "mean": pytest.approx(mean), "std": pytest.approx(std)}
        assert f"{100 * mean:.2f} ± {100 * std:.2f}" in log.text
        assert tuple(run[name]["miou"] for run in found["runs"]) == scores
    assert [run["seed"] for run in found["runs"]] == [0, 1, 2]
    assert [run["run"] for run in found["runs"]] == ["seed_0", "seed_1", "seed_2"]
    assert found["protocol"].startswith("every validation image whole")
    assert f"protocol: {found['protocol']}" in log.text
    folders = " ".join(str(tmp_path / f"seed_{seed}") for seed in range(3))
    assert log.messages[-1].endswith(f" -m semiovs_jax compare {folders} --out=FILE.png")


def test_one_seed_has_no_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seeds, "train_and_evaluate", made_up)
    seeds.train_seeds(demo.get_config().lock(), tmp_path, [1])
    assert json.loads((tmp_path / "seeds.json").read_text())["miou"]["last"] == {"n": 1, "mean": LAST[1], "std": None}


def test_folders_that_hold_other_runs_are_refused_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for seed in (1, 2):
        write_run(tmp_path / f"seed_{seed}", {20: 0.5}, seed=7)
        (tmp_path / f"seed_{seed}" / "result.json").write_text(json.dumps({"steps": 20}))
        record = json.loads((tmp_path / f"seed_{seed}" / "run.json").read_text())
        config = json.loads((tmp_path / f"seed_{seed}" / "config.json").read_text())
        (tmp_path / f"seed_{seed}" / "run.json").write_text(json.dumps(record | {"config": config}))
    monkeypatch.setattr(seeds, "train_and_evaluate", lambda *_: pytest.fail("a run has started"))
    with pytest.raises(InputError) as error:
        seeds.train_seeds(demo.get_config().lock(), tmp_path, [0, 1, 2])
    assert len(error.value.args) == 2
    assert "seed_1: holds a run of another config" in error.value.args[0]
    assert "seed_2: holds a run of another config" in error.value.args[1]


@pytest.mark.parametrize(("text", "message"), [("0,x", "expected integers"), ("", "integers"), ("1,0,1", "twice: 1")])
def test_seeds_that_are_no_list_of_integers(text: str, message: str):
    with pytest.raises(InputError, match=f"^--seeds={text}: .*{message}"):
        seeds.parse_seeds(text)


def test_a_seed_out_of_range(tmp_path: Path):
    with pytest.raises(InputError, match=r"config.seed=-1: set it to 0 to"):
        seeds.train_seeds(demo.get_config().lock(), tmp_path, [0, -1])


def test_a_signal_at_the_last_step_of_a_run_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def late(config: ml_collections.ConfigDict, folder: str, _: object = None) -> signal.Signals:
        made_up(config, folder)
        return signal.SIGTERM

    monkeypatch.setattr(seeds, "train_and_evaluate", late)
    with pytest.raises(Stopped) as stopped:
        seeds.train_seeds(demo.get_config().lock(), tmp_path, [0, 1])
    assert stopped.value.code == 143
    assert not (tmp_path / "seed_1").exists()


def test_labels_of_one_seed_are_those_of_another(tmp_path: Path):
    mesh = make_mesh(jax.devices()[:1])
    first = label_ood_images(shrunk_demo(tmp_path, seed=0), mesh)
    second = label_ood_images(shrunk_demo(tmp_path, seed=1), mesh)
    assert (first.labeled, second.labeled) == (8, 0)


@pytest.mark.slow
def test_an_interrupted_run_continues_and_a_finished_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    changes = {"method.name": "supervised", "method.ood": "none", "train.steps": 2, "train.eval_every_steps": 1}
    config = shrunk_demo(tmp_path, **changes, **{"train.panel_images": 0})
    workdir = tmp_path / "runs"
    ask, asked = Preemption.reached, []

    def terminated_in_the_second_run(self: Preemption, step: int) -> bool:
        asked.append(step)
        if len(asked) == 3:
            signal.raise_signal(signal.SIGTERM)
        return ask(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", terminated_in_the_second_run)
        with pytest.raises(Stopped, match="143"):
            seeds.train_seeds(config, workdir, [0, 1])
    assert asked == [1, 2, 1]
    assert not (workdir / "seeds.json").exists()
    first = (workdir / "seed_0" / "metrics.jsonl").read_bytes()
    interrupted = (workdir / "seed_1" / "metrics.jsonl").read_bytes()
    seeds.train_seeds(config, workdir, [0, 1])
    assert (workdir / "seed_0" / "metrics.jsonl").read_bytes() == first
    continued = (workdir / "seed_1" / "metrics.jsonl").read_bytes()
    assert continued.startswith(interrupted)
    assert continued != interrupted
    found = json.loads((workdir / "seeds.json").read_text())
    assert [run["last"]["step"] for run in found["runs"]] == [2, 2]
    assert found["miou"]["last"]["n"] == 2
