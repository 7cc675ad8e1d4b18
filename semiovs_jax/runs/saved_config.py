"""The config of a run, read from its folder. A config file, too: --config=semiovs_jax/runs/saved_config.py:WORKDIR.

Commands that work on a run use it where --config is left out.
"""

import json
from pathlib import Path
from typing import Any

import ml_collections

from data_pipelines.errors import InputError
from semiovs_jax.runs.changes import current_keys
from semiovs_jax.runs.record import CONFIG
from semiovs_jax.runtime.workdir import workdir_path

_OF_CHECKPOINT = Path("meta", "metadata")  # has the run's config, too


def get_config(source: str) -> ml_collections.ConfigDict:
    """The config of a run, locked, with the keys of today.

    Args:
      source: the run's workdir, or the directory of one checkpoint in it.

    Raises:
      InputError: there is no config, or it cannot be read.
    """
    nested: dict[str, Any] = {}
    for key, value in current_keys(_read_config(workdir_path(source))).items():
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = tuple(value) if isinstance(value, list) else value
    return ml_collections.ConfigDict(nested).lock()


def _read_config(folder: Path) -> dict[str, Any]:
    checkpoints = sorted(folder.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name.partition(".")[0]))
    for path in (folder / CONFIG, folder / _OF_CHECKPOINT, *(path / _OF_CHECKPOINT for path in reversed(checkpoints))):
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if path.name == CONFIG else content["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read as the config of a run ({error}); give the config: --config=FILE"
            ) from error
    raise InputError(
        f"--workdir={folder}: holds no run: neither {CONFIG} nor a checkpoint; pass the workdir of a run, or "
        "--config=FILE"
    )
