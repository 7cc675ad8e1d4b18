"""The labeled images alone: Pascal VOC 2012 with 366 labels.

    python -m semiovs_jax.main --config=configs/voc366_supervised.py --workdir=runs/voc366_supervised

Needs: README.md says how to get data/pascal and weights/resnet101.safetensors.
Hardware: devices that divide 16. Time: not measured on an accelerator yet.
Published mIoU: 64.8 (LiheYoung/UniMatch, README.md); with this code it is not measured yet.
Protocol: original split, every val image whole, at its own size and at one scale.
"""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    """The experiment's locked config."""
    return published.voc("supervised", "366")
