"""The whole of SemiOVS in minutes: trains, labels OOD images, evaluates and saves on the embedded benchmark.

    python -m semiovs_jax.main --config=configs/demo.py --workdir=runs/demo

Needs nothing: the benchmark "shapes" is written to data/shapes, the tiny SED that labels its OOD images ships with
the package, and so do the weights that the student starts from (`configs/shapes_start.py`).

Hardware: two CPU cores. Time: 4 minutes, compilation and labeling included. mIoU: 83.9; docs/shapes.md says why the
benchmark is as it is.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The experiment's locked config."""
    config = common.semiovs_unimatch()
    config.batch_size = 8

    config.data.dataset = "shapes"
    config.data.root = "data/shapes"
    config.data.labeled_split = "splits/labeled.txt"
    config.data.unlabeled_split = "splits/unlabeled.txt"
    config.data.ood_root = "data/shapes/ood/JPEGImages"
    config.data.make = "shapes"
    config.data.crop_size = 65
    config.data.scale_range = (0.8, 1.25)  # the objects' own sizes differ as much again
    config.data.num_threads = 2

    config.model.backbone = "resnet_tiny"
    config.model.weights = "shapes_resnet"  # shipped, too

    config.ovs.weights = "shapes_sed"  # shipped: semiovs_jax/weights/shipped
    config.ovs.templates = ""
    config.ovs.vocabulary = "shapes"
    config.ovs.image_size = 256
    config.ovs.class_chunk = 0
    config.ovs.labels_dir = "data/shapes/ovs_sed"
    config.ovs.batch_size = 16

    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.01
    config.optim.head_multiplier = 1.0  # the start has a head, too

    config.eval.max_shapes = 1  # each would be compiled twice, for as long as it takes to evaluate all images

    config.train.steps = 450
    config.train.log_every_steps = 20
    config.train.eval_every_steps = 150
    config.train.checkpoint_every_steps = 150
    return config.lock()
