"""Trains a tiny CLIP. MaskCLIP labels the embedded benchmark's out-of-distribution images with it.

    python -m semiovs_jax.ovs.train --config=configs/ovs_shapes.py --workdir=runs/ovs_shapes
    cp runs/ovs_shapes/shapes_clip.safetensors semiovs_jax/weights/shipped/

Hardware: two CPU cores. Time and the mIoU of its labels: in the file's metadata and printed at the end.
"""

import ml_collections
from ml_collections import ConfigDict


def get_config() -> ml_collections.ConfigDict:
    """The experiment's locked config."""
    config = ConfigDict()
    config.kind = "maskclip"
    config.seed = 0
    config.vocabulary = "shapes"

    config.data = ConfigDict()
    config.data.images = 3000  # drawn once, then mirrored at random at every use
    config.data.held_out = 200  # images that measure the labels

    config.model = ConfigDict()
    config.model.image_size = 112
    config.model.patch_size = 8
    config.model.embed_dim = 64
    config.model.visual = ConfigDict({"width": 64, "num_layers": 4, "num_heads": 2})
    config.model.text = ConfigDict({"width": 48, "num_layers": 1, "num_heads": 2, "context_length": 40})
    config.model.logit_scale = 20.0

    config.train = ConfigDict()
    config.train.batch_size = 24
    config.train.steps = 8000
    config.train.warmup_steps = 100
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 0.02
    config.train.label_stride = 4  # labels are compared at this fraction of the image's resolution
    config.train.log_every_steps = 50
    return config.lock()
