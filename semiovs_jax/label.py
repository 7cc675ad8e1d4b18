"""Labels the OOD images once, before training: python -m semiovs_jax.label --config=configs/voc92.py.

`main` labels missing images, too. If the command is killed, start it again: it labels the images that have no label
yet, and the result has the same bytes as that of one run. To share the work among machines without JAX's distributed
runtime, start the command on each machine with --process_index and --process_count.
"""

import logging
from pathlib import Path
from typing import Any

from data_pipelines.datasets import dataset_info
from data_pipelines.labels.open_store import open_store
from data_pipelines.loading.streams import open_config_split
from semiovs_jax.ovs import build_ovs
from semiovs_jax.ovs.labeling.identity import labels_identity
from semiovs_jax.ovs.labeling.images import label_images
from semiovs_jax.runtime.sharding import make_mesh


def main(flags: Any) -> None:
    """Labels the OOD images of `flags.config`."""
    config = flags.config
    dataset = dataset_info(config.data.dataset)
    ovs = build_ovs(config.ovs, dataset.num_classes)
    source = open_config_split(config.data, "ood")
    identity = labels_identity(config.ovs, ovs, dataset)
    report = label_images(
        source,
        ovs,
        open_store(Path(config.ovs.labels_dir), identity, dataset, prepared=source.prepared),
        make_mesh(),
        batch_size=config.ovs.batch_size,
        num_threads=config.data.num_threads,
        max_bad_records=config.data.max_bad_records,
        process_index=flags.process_index,
        process_count=flags.process_count,
    )
    logging.getLogger(__name__).info(
        "%s: %d of %d images labeled now (%.1f a second), %d bad, %s",
        config.ovs.labels_dir,
        report.labeled,
        report.images,
        report.images_per_second,
        len(report.bad),
        "complete" if report.finished else "waiting for other processes",
    )


if __name__ == "__main__":
    from absl import flags as absl_flags

    from semiovs_jax.runtime.command import run_command

    absl_flags.DEFINE_integer("process_index", None, "Index of the share of the images to label.")
    absl_flags.DEFINE_integer("process_count", None, "Number of shares.")
    run_command(main, needs_workdir=False)
