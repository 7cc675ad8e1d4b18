"""What the flags of `label` ask for: images, words and labels that no config file names, and the end of the command."""

import contextlib
import logging
from typing import Any

import ml_collections

from data_pipelines.errors import InputError
from data_pipelines.labels.manifest import labels_folder
from semiovs_jax.ood_imports import import_ood_labels
from semiovs_jax.ood_labels import label_ood_images
from semiovs_jax.ovs.labeling.contact_sheet import FILE_NAME
from semiovs_jax.own_words import CLASSES, VOCABULARY, own_words
from semiovs_jax.runtime.config_files import load_config
from semiovs_jax.runtime.program import config_arguments, other_command
from semiovs_jax.runtime.sharding import make_mesh
from semiovs_jax.runtime.shared_folders import check_shared

_logger = logging.getLogger(__name__)

_CONFIG = "configs/custom.py"
_PATHS = ("vocabulary", "labels_dir")  # of config.ovs


def label_as_requested(flags: Any) -> None:
    """Labels images, or takes over labels, and reports what was done.

    Args:
      flags: config, and what replaces values in it: source, out, classes, ovs_weights; import; the flags of processes.

    Raises:
      InputError: flags are missing, or as `own_words`, `import_ood_labels` and `label_ood_images`.
    """
    config, folder = flags.config, getattr(flags, "import")
    _refuse_missing(flags, folder)
    values = {"data.ood_root": flags.source, "ovs.labels_dir": flags.out, "ovs.weights": flags.ovs_weights}
    config.update_from_flattened_dict({key: value for key, value in values.items() if value})
    words = own_words(config, flags.classes, labels=not folder) if flags.classes else contextlib.nullcontext()
    with words:
        finished = _import(config, folder) if folder else _label(config, flags)
    if finished:
        _log_end(config, imported=bool(folder), with_words=bool(flags.classes))


def _label(config: ml_collections.ConfigDict, flags: Any) -> bool:
    """Whether all images are labeled now, or bad."""
    if config.ovs.labels == "external":
        raise InputError(
            "config.ovs.labels='external': training reads the labels of another tool in config.ovs.labels_dir="
            f"{config.ovs.labels_dir}, and there is nothing to label; to check them: "
            f"{other_command('check_data', *config_arguments())}; to label with config.ovs, set "
            "--config.ovs.labels=cached and another --config.ovs.labels_dir"
        )
    share = {} if flags.distributed else {"process_index": flags.process_index, "process_count": flags.process_count}
    if share.get("process_count") is None:
        check_shared({"config.ovs.labels_dir": labels_folder(config.ovs.labels_dir)})
    report = label_ood_images(config, make_mesh(), **share)
    _logger.info(
        "%s: %d of %d images labeled now (%.1f a second), %d bad, %s",
        config.ovs.labels_dir,
        report.labeled,
        report.images,
        report.images_per_second,
        len(report.bad),
        "complete" if report.finished else "waiting for other processes",
    )
    return report.finished


def _import(config: ml_collections.ConfigDict, folder: str) -> bool:
    imported = import_ood_labels(config, folder)
    _logger.info("%s: %d labels, %d of them new", config.ovs.labels_dir, imported.images, imported.written)
    config.ovs.labels = "external"
    return True


def _refuse_missing(flags: Any, folder: str) -> None:
    faults = []
    if flags.classes and not flags.source:
        faults.append("--classes needs --source=FOLDER, the folder of the images to label")
    if (flags.classes or folder) and not flags.out:
        faults.append(f"--{'classes' if flags.classes else 'import'} needs --out=FOLDER, the folder of the labels")
    if folder and flags.distributed:
        faults.append("--import with --distributed: labels are taken over in one process; start the command once")
    if folder and flags.ovs_weights:
        faults.append("--import reads labels that are there; leave out --ovs_weights")
    if faults:
        raise InputError(*faults)


def _log_end(config: ml_collections.ConfigDict, *, imported: bool, with_words: bool) -> None:
    """What was written, and the next command."""
    folder = labels_folder(config.ovs.labels_dir)
    files = ", ".join(["labels/", *[f"{VOCABULARY}, {CLASSES}"] * with_words])
    _logger.info("%s: %s; look at %s before you train on the labels", folder, files, folder / FILE_NAME)
    if with_words:
        _logger.info("next, with labeled images and lists of yours in DATA: %s", _next(config))
    else:
        values = ["--config.ovs.labels=external", f"--config.ovs.labels_dir={folder}"] if imported else []
        _logger.info("next: %s", other_command("train", *config_arguments(), "--workdir=RUN", *values))


def _next(config: ml_collections.ConfigDict) -> str:
    """The command that trains on the labels, with labeled images in a folder DATA."""
    default = load_config(_CONFIG)
    values = {"data.root": "DATA", "data.dataset": config.data.dataset, "data.ood_root": config.data.ood_root}
    changed = {key: value for key, value in config.ovs.items() if key in _PATHS or value != default.ovs[key]}
    values |= {f"ovs.{key}": value for key, value in changed.items()}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return other_command("train", f"--config={_CONFIG}", "--workdir=RUN", *flags)
