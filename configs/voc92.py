"""SemiOVS on UniMatch, Pascal VOC 2012 with 92 labels: short for --config=configs/voc.py:92.

    python -m semiovs_jax.main --config=configs/voc92.py --workdir=runs/voc92

Hardware, time and published mIoU (80.4): see `configs/voc.py`.
"""

from ml_collections import ConfigDict

from configs import voc


def get_config() -> ConfigDict:
    """The experiment's locked config."""
    return voc.get_config("92")
