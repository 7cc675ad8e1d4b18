"""Labels the OOD images once, before training: python -m semiovs_jax.label --config=configs/voc92.py.

`main` labels missing images, too. If the command is killed, start it again: it labels the images that have no label
yet, and the result has the same bytes as that of one run. To share the work among machines without JAX's distributed
runtime, start the command on each machine with --process_index and --process_count.
"""

import logging
from typing import TYPE_CHECKING, Any

import ml_collections

from data_pipelines.labels.manifest import labels_folder
from semiovs_jax.runtime.callable_module import make_callable
from semiovs_jax.runtime.command import set_up_process
from semiovs_jax.runtime.config_files import load_config
from semiovs_jax.runtime.program import config_arguments, other_command

if TYPE_CHECKING:
    from semiovs_jax.ovs.labeling.images import LabelReport


def main(flags: Any) -> None:
    """Labels the OOD images of `flags.config`."""
    from semiovs_jax.ood_labels import label_ood_images
    from semiovs_jax.ovs.labeling.contact_sheet import FILE_NAME
    from semiovs_jax.runtime.sharding import make_mesh
    from semiovs_jax.runtime.workdir import check_shared

    share = {} if flags.distributed else {"process_index": flags.process_index, "process_count": flags.process_count}
    if share.get("process_count") is None:
        check_shared({"config.ovs.labels_dir": labels_folder(flags.config.ovs.labels_dir)})
    report = label_ood_images(flags.config, make_mesh(), **share)
    logger = logging.getLogger(__name__)
    logger.info(
        "%s: %d of %d images labeled now (%.1f a second), %d bad, %s",
        flags.config.ovs.labels_dir,
        report.labeled,
        report.images,
        report.images_per_second,
        len(report.bad),
        "complete" if report.finished else "waiting for other processes",
    )
    if report.finished:
        logger.info("look at %s", labels_folder(flags.config.ovs.labels_dir) / FILE_NAME)
        logger.info("next: %s", other_command("train", *config_arguments(), "--workdir=RUN"))


def label(config: ml_collections.ConfigDict | str) -> "LabelReport":
    """Labels the OOD images of a config on this machine, as the command does.

    Args:
      config: an experiment, or as --config names it: "configs/voc92.py".

    Raises:
      InputError: something a person has to fix.
    """
    set_up_process()
    from semiovs_jax.ood_labels import label_ood_images
    from semiovs_jax.runtime.sharding import make_mesh

    return label_ood_images(load_config(config) if isinstance(config, str) else config, make_mesh())


make_callable(__name__, label)

if __name__ == "__main__":
    from semiovs_jax.runtime.command import run_command

    kept = "the labels that are written are kept; the same command makes the others"
    run_command(main, needs_workdir=False, kept=kept, has_shares=True)
