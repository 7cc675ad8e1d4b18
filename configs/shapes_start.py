"""The start of the embedded benchmark's students, which ships as "shapes_resnet": to them what ImageNet is to others.

    python -m data_pipelines.shapes --start --root=data/shapes_start
    python -m semiovs_jax.main --config=configs/shapes_start.py --workdir=runs/shapes_start
    python -m semiovs_jax.export --workdir=runs/shapes_start --format=safetensors --out=runs/shapes_resnet
    cp runs/shapes_resnet/model.safetensors semiovs_jax/weights/shipped/shapes_resnet.safetensors

It learns objects that are no class of the benchmark, on none of its images, from random weights.

Hardware: two CPU cores. Time: 20 minutes. mIoU: 87.8 on its own 100 validation images.
"""

import ml_collections

from configs import demo


def get_config() -> ml_collections.ConfigDict:
    """The experiment's locked config."""
    config = demo.get_config().unlock()
    config.method.name = "supervised"
    config.method.ood = "none"

    config.data.dataset = "shapes_start"
    config.data.root = "data/shapes_start"
    config.data.unlabeled_split = "splits/labeled.txt"  # not read by this method
    config.data.ood_root = ""
    config.data.make = ""

    config.model.weights = ""
    config.model.random_init = True

    config.batch_size = 16
    config.train.steps = 14000
    config.train.log_every_steps = 50
    config.train.eval_every_steps = 1000
    config.train.checkpoint_every_steps = 1000
    return config.lock()
