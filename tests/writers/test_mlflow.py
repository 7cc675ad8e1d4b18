"""MLflow's client reads what a run writes: to the workdir, or to the tracking URI of the environment."""

import math
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiovs_jax.writers import writer_faults
from tests.writers.run import write_run

pytest.importorskip("mlflow", reason="needs the extra mlflow")


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def _check_run(client, workdir: Path, experiment: str):
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert run.info.run_id == (workdir / "mlflow" / "run_id").read_text()
    assert (run.info.run_name, run.info.status) == ("runs/demo", "FINISHED")
    assert run.data.params == {"seed": "7", "data.crop_size": "33", "data.scale_range": "[0.5, 2.0]"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {(metric.step, metric.value) for metric in history} == {(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)}
    metrics = run.data.metrics
    assert (metrics["eval/miou"], metrics["iou/potted _plant__ big"], metrics["best_miou"]) == (0.4, 0.5, 0.4)
    assert math.isnan(metrics["train/mfu"])
    assert {"config.json", "summary.txt", "images"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    return run


@pytest.mark.slow  # MLflow needs ten seconds to make a database
def test_without_settings_the_record_is_in_the_workdir(tmp_path: Path):
    from mlflow import MlflowClient

    workdir = tmp_path / "runs" / "demo"
    write_run(workdir, "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{workdir}/mlflow/mlflow.db")
    run = _check_run(client, workdir, "semiovs_jax")
    (panel,) = (workdir / "mlflow" / "artifacts" / run.info.run_id / "artifacts" / "images").glob("panel+step+4*.png")
    assert np.asarray(Image.open(panel))[0, 0].tolist() == [40, 40, 40]
    assert not (tmp_path / "mlruns").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_the_environment_names_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert writer_faults("mlflow") == []
    write_run(tmp_path / "runs" / "demo", "mlflow")
    _check_run(MlflowClient(tracking_uri=(tmp_path / "store").as_uri()), tmp_path / "runs" / "demo", "mine")


def test_a_server_that_does_not_answer_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        (fault,) = writer_faults("mlflow")
    assert f"mlflow: MLFLOW_TRACKING_URI={uri} does not answer" in fault
    assert "start it, or fix MLFLOW_TRACKING_URI" in fault
