"""Labels the OOD images once, before training: python -m semiovs_jax.label --config=configs/voc92.py.

`main` does the same by itself where labels are missing. Killed and started again, it goes on with the images that
have no label yet, and ends with the same bytes as an undisturbed run. To share the work among machines without
JAX's distributed runtime, start one command on each with --process_index and --process_count.
"""

import logging
from typing import Any

from data_pipelines.datasets import dataset_info
from semiovs_jax.ovs import build_ovs
from semiovs_jax.ovs.labeling.images import label_images
from semiovs_jax.runtime.sharding import make_mesh


def main(flags: Any) -> None:
    """Labels `flags.config`'s OOD images."""
    config = flags.config
    ovs = build_ovs(config.ovs, dataset_info(config.data.dataset).num_classes)
    report = label_images(
        config, ovs, make_mesh(), process_index=flags.process_index, process_count=flags.process_count
    )
    logging.getLogger(__name__).info(
        "%s: %d of %d images labeled now (%.1f a second), %d bad, %s",
        config.ovs.labels_dir,
        report.labeled,
        report.images,
        report.images_per_second,
        len(report.bad),
        "complete" if report.finished else "other processes are not done yet",
    )


if __name__ == "__main__":
    from absl import flags as absl_flags

    from semiovs_jax.runtime.command import run_command

    absl_flags.DEFINE_integer("process_index", None, "Which share of the images to label.")
    absl_flags.DEFINE_integer("process_count", None, "Number of shares.")
    run_command(main, needs_workdir=False)
