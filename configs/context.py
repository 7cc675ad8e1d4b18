"""Pascal Context, 60 classes, every published row: --config=configs/context.py:SPLIT[,METHOD], by default "unimatch".

    python -m semiovs_jax.main --config=configs/context.py:1_16,prevmatch --workdir=runs/context_1_16_prevmatch

SPLIT is the share of the training images that is labeled: 1_32, 1_16, 1_8, 1_4 or 1_2; METHOD is unimatch, prevmatch or
supervised. --config.method.ood=none leaves out the OOD images.

Needs: docs/voc.md says how to get data/pascal_context, data/coco/train2017, and the weights of ResNet-101 and SED.
Hardware: any number of devices that divides the batch: 8; supervised 16. The reference used one GPU. Time: not measured
on an accelerator yet.
Published mIoU: in arXiv 2507.03302, not copied here, and for supervised none known to us; none is measured with this
code yet.
Protocol: every val image whole, at its own size and at one scale.
"""

from ml_collections import ConfigDict

from configs import common

SPLITS = ("1_32", "1_16", "1_8", "1_4", "1_2")
METHODS = ("unimatch", "prevmatch", "supervised")


def get_config(argument: str = "") -> ConfigDict:
    """The locked config of one row.

    Args:
      argument: "SPLIT" or "SPLIT,METHOD".

    Raises:
      InputError: there is no such row.
    """
    split, method = common.parse_row(argument, "configs/context.py", SPLITS, METHODS)
    config = common.semiovs_unimatch()
    config.data.dataset = "context60"
    config.data.root = "data/pascal_context"
    config.data.labeled_split = f"splits/{split}/labeled.txt"
    config.data.unlabeled_split = f"splits/{split}/unlabeled.txt"
    config.ovs.vocabulary = "context60"
    config.ovs.labels_dir = "data/coco/ovs_context60"
    return common.with_method(config, method).lock()
