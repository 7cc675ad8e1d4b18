"""What is trained: the rows of the table, as changes to `configs/demo.py`, and their data."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from data_pipelines.shapes.benchmark import ShapesSpec, draw_labeled, write_shapes, write_split
from semiovs_jax.runtime.config_files import load_config
from semiovs_jax.runtime.provenance import config_as_json, config_sha256
from semiovs_jax.weights.parts import stored_sha256, weights_path

OURS = "SemiOVS"
NAIVE = "UniMatch, OOD as unlabeled"
THRESHOLD = 0.7  # of OVS confidence

LABELED = (ShapesSpec().labeled, 16, 48)
OOD = (100, ShapesSpec().ood, 1600, 6400)
"""Numbers of images; the rows that say nothing else have those of the demo."""

_ROOT = Path("data/shapes_claims")
# The images of the demo and more: a larger benchmark keeps those of a smaller one.
_SPEC = dataclasses.replace(
    ShapesSpec(),
    labeled=max(LABELED),
    unlabeled=ShapesSpec().labeled + ShapesSpec().unlabeled - max(LABELED),
    ood=max(OOD),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      changes: to `configs/demo.py`, by dotted key.
      group: "methods", "ood" or "labels".
      labeled: number of labeled images.
      ood: number of OOD images.
    """

    changes: Mapping[str, Any]
    group: str = "methods"
    labeled: int = LABELED[0]
    ood: int = ShapesSpec().ood


_SUPERVISED = {"method.name": "supervised", "method.ood": "none"}
_ALONE, _OVS = {"method.ood": "none"}, {"method.ood": "ovs"}

# PrevMatch takes a snapshot whenever an evaluation is the best so far, and evaluates after every epoch.
_PREVMATCH = {"method.name": "prevmatch", "train.eval_every_steps": 0}

# The student of SemiVL at the size of the shipped CLIP, which is its backbone, its frozen labeler and its text tower.
_CLIP_STUDENT = {
    "model.backbone": "clip_vit_shapes",
    "model.weights": "shapes_clip",
    "model.random_init": False,
    "clip.weights": "shapes_clip",
    "clip.vocabulary": "shapes",
    "clip.class_prompt": "{}",
    "clip.layers": "",
    "data.crop_size": 64,
    "train.steps": 200,  # fewer than in the other rows, because a step takes three times as long
    "train.eval_every_steps": 100,
    "train.checkpoint_every_steps": 100,
    "optim.name": "adamw",
    "optim.learning_rate": 1e-4,
    "optim.head_multiplier": 10.0,
    "optim.weight_decay": 0.01,
    "method.ood_weight": 0.5,
    "eval.window": 64,
    "eval.stride": 48,
}
_SEMIVL = {**_CLIP_STUDENT, "method.name": "semivl"}

_MASKCLIP = {
    "ovs.name": "maskclip",
    "ovs.weights": "shapes_clip",
    "ovs.image_size": 112,
    "ovs.labels_dir": f"{_ROOT}/ovs_maskclip",
}

# SED sees crops. Stretched to the side that whole images have for labels on disk, objects would be twice as large.
_ONLINE = {"ovs.labels": "online", "ovs.image_size": 128}

ROWS: dict[str, Row] = {
    "supervised": Row(_SUPERVISED),
    "UniMatch": Row(_ALONE),
    NAIVE: Row({"method.ood": "unlabeled"}),
    f"{OURS}, OVS confidence >= {THRESHOLD}": Row({**_OVS, "method.ovs_threshold": THRESHOLD}),
    f"{OURS}, MaskCLIP labels": Row({**_OVS, **_MASKCLIP}),
    f"{OURS}, online labels": Row({**_OVS, **_ONLINE}),
    OURS: Row(_OVS),
    "PrevMatch": Row({**_PREVMATCH, **_ALONE}),
    f"{OURS} on PrevMatch": Row({**_PREVMATCH, **_OVS}),
    "supervised, SemiVL's student": Row({**_CLIP_STUDENT, **_SUPERVISED}),
    "SemiVL": Row({**_SEMIVL, **_ALONE}),
    f"{OURS} on SemiVL": Row({**_SEMIVL, **_OVS}),
}


def with_ood(count: int) -> str:
    """The row of `OURS` with a number of OOD images."""
    return OURS if count == ShapesSpec().ood else f"{OURS}, {count} OOD images"


def with_labels(name: str, count: int) -> str:
    """The row of "UniMatch" or `OURS` with a number of labeled images."""
    return name if count == LABELED[0] else f"{name}, {count} labels"


ROWS |= {with_ood(count): Row(_OVS, "ood", ood=count) for count in OOD if with_ood(count) not in ROWS}
ROWS |= {
    with_labels(name, count): Row(ROWS[name].changes, "labels", labeled=count)
    for count in LABELED[1:]
    for name in ("supervised", "UniMatch", OURS)
}


def write_data() -> None:
    """Writes the images of all rows, if they are not there, and the lists of each number of them."""
    write_shapes(_ROOT, _SPEC)
    splits = _ROOT / "splits"
    ids = sorted(path.stem for path in (_ROOT / "SegmentationClass").glob("train_*.png"))
    for count in LABELED:
        for name, chosen in zip(("labeled", "unlabeled"), draw_labeled(_ROOT, ids, count, seed=0), strict=True):
            write_split(_ROOT, f"{name}_{count}", chosen)
    images = sorted(path.name for path in (_ROOT / "ood" / "JPEGImages").iterdir())
    for count in OOD:
        (splits / f"ood_{count}.txt").write_text("\n".join([*images[:count], ""]), "utf-8")


def fingerprint(config: ml_collections.ConfigDict) -> str:
    """Tells runs apart: a digest of the config and of the shipped weights that it names."""
    names = (config.model.weights, config.ovs.weights, config.clip.weights)
    weights = {name: stored_sha256(name) for name in names if weights_path(name).is_file()}
    return config_sha256({"config": config_as_json(config), "weights": weights})[:12]


def row_config(row: Row, seed: int) -> ml_collections.ConfigDict:
    """The locked config of a row and a seed."""
    config = load_config("configs/demo.py").unlock()
    data = {
        "data.root": str(_ROOT),
        "data.labeled_split": f"splits/labeled_{row.labeled}.txt",
        "data.unlabeled_split": f"splits/unlabeled_{row.labeled}.txt",
        "data.ood_root": f"{_ROOT}/ood/JPEGImages",
        "data.ood_split": f"../../splits/ood_{row.ood}.txt",  # relative to ood_root
        "data.make": "",
        "ovs.labels_dir": f"{_ROOT}/ovs_sed",
    }
    config.update_from_flattened_dict({**data, **row.changes, "seed": seed, "train.panel_images": 0})
    return config.lock()
