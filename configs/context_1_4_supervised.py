"""The labeled images alone: Pascal Context (60 classes) with 1/4 of the labels.

    python -m semiovs_jax.main --config=configs/context_1_4_supervised.py --workdir=runs/context_1_4_supervised

Needs: README.md says how to get data/pascal_context and weights/resnet101.safetensors.
Hardware: devices that divide 16. Time: not measured on an accelerator yet.
Published mIoU: none known to us; not measured with this code yet.
Protocol: every val image whole, at its own size and at one scale.
"""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    """The experiment's locked config."""
    return published.context("supervised", "1_4")
