"""SemiOVS on SemiVL: Pascal VOC 2012 with 92 labels, OOD images from COCO.

    python -m semiovs_jax.main --config=configs/voc92_semivl.py --workdir=runs/voc92_semivl

Needs: README.md says how to get data/pascal, data/coco/train2017, and CLIP's and SED's weights.
Hardware: devices that divide 4; the reference used two GPUs. Time: not measured on an accelerator yet.
Published mIoU: 87.0, 84.0 with --config.method.ood=none (arXiv 2507.03302); not measured with this code yet.
Protocol: original split, val images at a short side of 512 by windows of 512 px every 426 px, at one scale.
"""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    """The experiment's locked config."""
    return published.voc("semivl", "92")
