"""The weights with the names of the PyTorch code that published the architecture, which loads them strictly."""

import json
from pathlib import Path

from semiovs_jax.exporting.manifest import write_manifest
from semiovs_jax.exporting.model import TrainedModel
from semiovs_jax.models import FAMILIES
from semiovs_jax.runtime.program import other_command
from semiovs_jax.weights.files import save_weights
from semiovs_jax.weights.state_dicts import STATE_DICT

_FILE = "model.safetensors"


def write(folder: Path, trained: TrainedModel) -> list[Path]:
    """Writes model.safetensors and manifest.json; see `Format`."""
    backbone, dataset = trained.config.model.backbone, trained.model.dataset
    tensors = FAMILIES[backbone].state_dict(trained.params, trained.batch_stats)
    metadata = {
        "kind": STATE_DICT,
        "format": "pt",  # the layout of tensors, in the words of Hugging Face's loaders
        "backbone": backbone,
        "dataset": dataset.name,
        "classes": json.dumps(dataset.classes),
    }
    save_weights(folder / _FILE, tensors, metadata)
    return [folder / _FILE, write_manifest(folder, trained, {"format": "safetensors", "file": _FILE})]


def following(folder: Path) -> str:
    """See `Format`; the weights may be fine-tuned here, too."""
    return other_command("train", "--config=FILE", f"--config.model.weights={folder / _FILE}", "--workdir=RUN")
