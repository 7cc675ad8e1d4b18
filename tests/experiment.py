"""The real configs shrunk for tests, and weights for them."""

from pathlib import Path

import ml_collections

from configs import demo
from data_pipelines.shapes.benchmark import ShapesSpec, write_shapes
from tests.ovs.tiny_clip import write_clip

SPEC = ShapesSpec(labeled=4, unlabeled=12, val=4, ood=8)


def shrunk_demo(folder: Path, **changes) -> ml_collections.ConfigDict:
    """`configs/demo.py` on a handful of images, two images a stream, small crops, from random weights.

    The optimizer is that of the papers on ResNets, whose momentum tests look at. `changes` are by dotted key.
    """
    config = demo.get_config().unlock()
    root = folder / "shapes"
    if not root.exists():
        write_shapes(root, SPEC)
        write_clip(folder / "clip.safetensors")
    config.update_from_flattened_dict(
        {
            "batch_size": 2,
            "data.root": str(root),
            "data.ood_root": str(root / "ood" / "JPEGImages"),
            "data.crop_size": 33,
            "data.scale_range": (0.5, 2.0),
            "model.weights": "",
            "model.random_init": True,
            "ovs.name": "maskclip",
            "ovs.weights": str(folder / "clip.safetensors"),
            "ovs.image_size": 32,
            "ovs.labels_dir": str(folder / "labels"),
            "ovs.batch_size": 4,
            "optim.name": "sgd",
            "optim.learning_rate": 2e-2,
            "optim.weight_decay": 1e-4,
            "train.steps": 4,
            "train.log_every_steps": 1,
            "train.eval_every_steps": 2,
            "train.checkpoint_every_steps": 2,
            "train.panel_images": 1,
            "eval.batch_size": 2,
            "eval.max_shapes": 1,
            **changes,
        }
    )
    return config.lock()
