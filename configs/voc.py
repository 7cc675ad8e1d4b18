"""Pascal VOC 2012, every published row: --config=configs/voc.py:SPLIT[,METHOD], with METHOD "unimatch" if left out.

    python -m semiovs_jax.main --config=configs/voc.py:92,prevmatch --workdir=runs/voc92_prevmatch

Needs: docs/voc.md says how to get data/pascal, data/coco/train2017, and the weights of SED and of ResNet-101 (semivl:
CLIP's ViT-B/16).
Hardware: any number of devices that divides the batch: 8; semivl 4, supervised 16. The references used one GPU,
semivl two. Time: not measured on an accelerator yet.
Protocol: original split, single scale; every val image whole at its own size, semivl's at a short side of 512 by
windows of 512 px every 426 px.

Published mIoU in %, with / without OOD images (--config.method.ood=none); none is measured with this code yet:

    split   unimatch      prevmatch     semivl        supervised
    92      80.4 / 75.2   80.5 / 77.0   87.0 / 84.0   45.1
    183     81.3 / 77.2   81.5 / 78.5   87.3 / 85.6   55.3
    366     81.6 / 78.8   81.4 / 79.6   87.5 / 86.0   64.8
    732     81.7 / 79.9   81.8 / 80.4   87.9 / 86.7   69.7
    1464    81.8 / 81.2   81.9 / 81.6   88.0 / 87.3   73.5

Source: arXiv 2507.03302; supervised: README.md of LiheYoung/UniMatch.
"""

from ml_collections import ConfigDict

from configs import common

SPLITS = ("92", "183", "366", "732", "1464")
METHODS = ("unimatch", "prevmatch", "semivl", "supervised")


def get_config(argument: str = "") -> ConfigDict:
    """The locked config of one row.

    Args:
      argument: "SPLIT" or "SPLIT,METHOD".

    Raises:
      InputError: there is no such row.
    """
    split, method = common.parse_row(argument, "configs/voc.py", SPLITS, METHODS)
    config = common.semiovs_unimatch()
    config.data.labeled_split = f"splits/{split}/labeled.txt"
    config.data.unlabeled_split = f"splits/{split}/unlabeled.txt"
    return common.with_method(config, method).lock()
