"""SemiOVS on PrevMatch: Pascal Context (60 classes) with 1/8 of the labels, OOD images from COCO.

    python -m semiovs_jax.main --config=configs/context_1_8_prevmatch.py --workdir=runs/context_1_8_prevmatch

Needs: README.md says how to get data/pascal_context, data/coco/train2017, and the weights of ResNet-101 and SED.
Hardware: devices that divide 8; the reference used one GPU. Time: not measured on an accelerator yet.
Published mIoU: in arXiv 2507.03302, not copied here; not measured with this code yet.
Protocol: every val image whole, at its own size and at one scale.
"""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    """The experiment's locked config."""
    return published.context("prevmatch", "1_8")
