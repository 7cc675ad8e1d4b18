"""The manifest of an exported model: what it predicts, and where it comes from."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.files import replace_file
from semiovs_jax.exporting.model import TrainedModel
from semiovs_jax.runtime.provenance import git_revision, package_versions
from semiovs_jax.runtime.workdir import workdir_path

MANIFEST = "manifest.json"


def write_manifest(folder: Path, trained: TrainedModel, facts: Mapping[str, Any]) -> Path:
    """Writes manifest.json.

    Args:
      folder: where the model is written.
      trained: the model.
      facts: entries of the format.

    Returns:
      The file.

    Raises:
      InputError: the file cannot be written.
    """
    path = folder / MANIFEST
    replace_file(path, json.dumps({**facts, **_facts(trained)}, indent=1) + "\n")
    return path


def _facts(trained: TrainedModel) -> dict[str, Any]:
    dataset, config = trained.model.dataset, trained.config
    return {
        "backbone": config.model.backbone,
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "palette": dataset.palette[: dataset.num_classes].tolist(),
        "run": str(workdir_path(trained.workdir)),
        "method": config.method.name,
        "step": trained.meta["step"],
        "miou": trained.meta.get("miou"),  # of this checkpoint, in 0..1; null if it was not evaluated
        "evaluation": config.eval.to_dict(),
        "config_sha256": trained.meta["config_sha256"],
        "trained_with": trained.meta["versions"],
        "exported_with": package_versions(),
        "git_revision": git_revision(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
