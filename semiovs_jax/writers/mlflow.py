"""MLflow: a run for each workdir.

Settings are MLflow's environment variables: MLFLOW_TRACKING_URI (a server, a database or a folder; if it is not set,
WORKDIR/mlflow/mlflow.db) and MLFLOW_EXPERIMENT_NAME (if it is not set, "semiovs_jax").
See https://mlflow.org/docs/latest/tracking.
"""

import importlib.util
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.files import is_remote, replace_file
from semiovs_jax.runtime.config_keys import flat
from semiovs_jax.writers.base import RunFacts, Writer, WriterError, service_errors

_EXPERIMENT = "semiovs_jax"
_URI = "MLFLOW_TRACKING_URI"
_LONGEST_PARAMETER = 6000  # characters that MLflow takes

# Where the server is lost, a step waits for seconds. MLflow's own values make it wait for minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def faults() -> list[str]:
    """A message if the package is missing, or if the server does not answer."""
    if importlib.util.find_spec("mlflow") is None:
        return [
            "config.train.writers: mlflow is not installed; run pip install 'semiovs-jax[mlflow]', or leave mlflow out"
        ]
    uri = os.environ.get(_URI, "")
    if not uri.startswith(("http:", "https:")):
        return []
    from mlflow.exceptions import MlflowException

    try:
        _client(uri).get_experiment_by_name(_experiment_name())
    except MlflowException as error:
        return [f"config.train.writers: mlflow: {_URI}={uri} does not answer; start it, or fix {_URI} ({error})"]
    return []


@service_errors()
def open_writer(facts: RunFacts) -> Writer:
    """Continues the MLflow run of a workdir, or starts one. Its identity is in WORKDIR/mlflow/run_id."""
    folder = facts.workdir.absolute() / "mlflow"
    if is_remote(folder) and not os.environ.get(_URI):
        raise WriterError(f"{folder}: a database cannot be on object storage; set {_URI}")
    folder.mkdir(parents=True, exist_ok=True)
    client = _client(os.environ.get(_URI) or f"sqlite:///{folder / 'mlflow.db'}")
    identity = folder / "run_id"
    run_id = identity.read_text(encoding="utf-8").strip() if identity.exists() else ""
    if not _continue_run(client, run_id):
        artifacts = None if os.environ.get(_URI) else (folder / "artifacts").as_uri()
        run_id = _start_run(client, facts, artifacts)
        replace_file(identity, run_id)
    client.log_dict(run_id, dict(facts.config), "config.json")
    return _MlflowRun(client, run_id)


class _MlflowRun:
    """A run of MLflow."""

    def __init__(self, client: Any, run_id: str):
        self._client, self._id = client, run_id

    @service_errors()
    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_metric_name(tag), value, now, step) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    @service_errors()
    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self._id, image, key=tag, step=step)

    @service_errors()
    def add_text(self, tag: str, text: str, step: int) -> None:
        self._client.log_text(self._id, text + "\n", f"{tag}.txt")

    @service_errors()
    def finish(self, values: Mapping[str, float]) -> None:
        self.add_scalars(values, 0)

    @service_errors()
    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _client(uri: str) -> Any:
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)


def _continue_run(client: Any, run_id: str) -> bool:
    """Whether there is such a run, which then goes on."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False
    client.update_run(run_id, status="RUNNING")
    return True


def _start_run(client: Any, facts: RunFacts, artifacts: str | None) -> str:
    """A new run with the config as its parameters, which MLflow never changes later."""
    from mlflow.entities import Param

    experiment = client.get_experiment_by_name(_experiment_name())
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(_experiment_name(), artifacts)
    run_id = client.create_run(experiment_id, run_name=facts.name).info.run_id
    parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in flat(facts.config)]
    for first in range(0, len(parameters), 100):  # MLflow takes no more at once
        client.log_batch(run_id, params=parameters[first : first + 100])
    return run_id


def _metric_name(tag: str) -> str:
    """The tag without characters that MLflow refuses in the name of a class."""
    prefix, slash, name = tag.partition("/")
    return prefix + slash + re.sub(r"[^\w.\- :]", "_", name)
