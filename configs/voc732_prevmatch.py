"""SemiOVS on PrevMatch: Pascal VOC 2012 with 732 labels, OOD images from COCO.

    python -m semiovs_jax.main --config=configs/voc732_prevmatch.py --workdir=runs/voc732_prevmatch

Needs: README.md says how to get data/pascal, data/coco/train2017, and the weights of ResNet-101 and SED.
Hardware: devices that divide 8; the reference used one GPU. Time: not measured on an accelerator yet.
Published mIoU: 81.8, 80.4 with --config.method.ood=none (arXiv 2507.03302); not measured with this code yet.
Protocol: original split, every val image whole, at its own size and at one scale.
"""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    """The experiment's locked config."""
    return published.voc("prevmatch", "732")
