"""SemiOVS on UniMatch, Pascal VOC 2012 with 92 labels, OOD images from COCO.

    python -m semiovs_jax.main --config=configs/voc92.py --workdir=runs/voc92

Needs: data/pascal (VOC 2012 with SegmentationClassAug and the published splits), data/coco/train2017, and two weight
files, made once with
    python -m semiovs_jax.convert resnet101.pth weights/resnet101.safetensors --kind=resnet
    python -m semiovs_jax.convert sed_model_large.pth weights/sed_large.safetensors --kind=sed

Hardware: any number of TPU or GPU devices that divides 8; the reference's config is for one GPU, 8 images a stream.
Time: not measured on an accelerator yet.
Published mIoU: 80.4 (UniMatch alone 75.2), arXiv 2507.03302; with this code it is not measured yet.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The experiment's locked config."""
    return common.semiovs_unimatch().lock()
