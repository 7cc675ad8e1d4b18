"""Your own task: a folder of images, a class list and a vocabulary, no code.

    python -m semiovs_jax.check_data --config=configs/custom.py
    python -m semiovs_jax.main --config=configs/custom.py --workdir=runs/custom
    python -m semiovs_jax.evaluate --config=configs/custom.py --workdir=runs/custom

Needs, below data/custom, or below any other folder with --config.data.root=FOLDER (docs/index.md shows the files):
    splits/{labeled,unlabeled,val}.txt   a line an image, `IMAGE LABEL`, paths relative to the folder
    classes.json                         name, classes in label order, ignore_index
    vocabulary.json                      the same classes in the same order, with the words that an OVS looks for
    ood/                                 images of any kind that may show the classes, unlabeled
and weights, made once with
    python -m semiovs_jax.convert resnet50.pth weights/resnet50.safetensors --kind=resnet
    python -m semiovs_jax.convert sed_model_large.pth weights/sed_large.safetensors --kind=sed
A light OVS instead of SED: --config.ovs.name=maskclip --config.ovs.weights=weights/clip.safetensors (--kind=clip)
--config.ovs.image_size=448. Without OOD images, vocabulary and OVS: --config.method.ood=none. Without unlabeled images:
--config.method.name=supervised beside it.

Hardware: any number of devices that divides 8; crops of 321 pixels want an accelerator. Time and mIoU: as your data
are: see check_data before, and table.txt in the workdir after training.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The experiment's locked config."""
    config = common.semiovs_unimatch()

    config.data.root = "data/custom"
    # Paths below the root follow it, unless they are set themselves.
    root = config.data.get_oneway_ref("root")
    config.data.dataset = root + "/classes.json"
    config.data.labeled_split = "splits/labeled.txt"
    config.data.unlabeled_split = "splits/unlabeled.txt"
    config.data.ood_root = root + "/ood"

    config.model.backbone = "resnet50"
    config.model.weights = "weights/resnet50.safetensors"

    config.ovs.vocabulary = root + "/vocabulary.json"
    config.ovs.labels_dir = root + "/ovs_labels"

    config.train.steps = 20_000
    config.train.eval_every_steps = 1000
    config.train.checkpoint_every_steps = 1000
    return config.lock()
