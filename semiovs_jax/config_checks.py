"""Finds everything that is wrong with a config, its weights, words and data, before anything is labeled or compiled.

`main` refuses the faults, `check_data` prints them: one judge for both.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
from flax import nnx

from data_pipelines.checking.report import DataReport, report_data
from data_pipelines.checking.survey import labels_dir_fault, open_splits
from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import Faults, InputError
from data_pipelines.labels.cache import open_label_cache, unsettled
from data_pipelines.labels.external import external_faults, missing_confidence, open_external_labels
from data_pipelines.labels.manifest import labels_folder
from data_pipelines.loading.options import Options
from data_pipelines.loading.selection import Filter, filter_fault
from data_pipelines.sources.records import Source
from semiovs_jax.evaluation.evaluator import check_evaluation
from semiovs_jax.experiment import Experiment, make_student, range_faults, read_sections
from semiovs_jax.initial import initial_weights
from semiovs_jax.labelers import labeler_faults, sections_with_words
from semiovs_jax.methods import Method, make_unchecked, method_faults
from semiovs_jax.optim import optimizer_faults
from semiovs_jax.ovs.vocabulary import Vocabulary
from semiovs_jax.ovs.words import check_words, unknown_names

_logger = logging.getLogger(__name__)


class Inspection(NamedTuple):
    """What was found of a config.

    Attributes:
      dataset: its classes; None if they cannot be read.
      method: None if there is no such method.
      vocabularies: the words that labelers read, by the section of the config that names them; those that can be read.
      report: what the splits hold that can be opened.
      cached: number of OOD images by the state of their cached OVS label ("labeled", "bad", "missing"); empty where the
        method reads none.
      faults: what forbids a run, each with what to do about it.
      warnings: what is allowed but worth a look.
      experiment: the parts, if there are no faults.
    """

    dataset: DatasetInfo | None
    method: Method | None
    vocabularies: dict[str, Vocabulary]
    report: DataReport
    cached: dict[str, int]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    experiment: Experiment | None

    def usable(self) -> Experiment:
        """The parts of the run; logs the warnings.

        Raises:
          InputError: all faults in one message.
        """
        for warning in self.warnings:
            _logger.warning(warning)
        if self.experiment is None:
            raise InputError(*self.faults)
        return self.experiment


def inspect(config: ml_collections.ConfigDict, *, devices: int = 1, thorough: bool = False) -> Inspection:
    """Looks at everything that can be wrong with a config, its weights, words and data; one fault hides no other.

    Args:
      config: an experiment, see `configs/common.py`.
      devices: number of devices that share a batch.
      thorough: see `report_data`.
    """
    faults = Faults()
    vocabularies: dict[str, Vocabulary] = {}
    cached: dict[str, int] = {}
    dataset = options = student = None
    with faults.collected():
        dataset = dataset_info(config.data.dataset)
    faults.add(method_faults(config.method))
    method = make_unchecked(config.method)
    with faults.collected():
        options = Options.read(config.data)
    faults.add(range_faults(config, devices))
    if dataset is not None:
        with faults.collected():
            student = nnx.eval_shape(lambda: make_student(config, dataset))
            initial_weights(config, dataset, student)
    faults.add(optimizer_faults(config.optim))
    if method is not None:
        faults.add(labeler_faults(read_sections(config), method, dataset, config.data.crop_size))
        for section in sections_with_words(read_sections(config), method):
            with faults.collected():
                vocabularies[section] = check_words(section, read_sections(config)(section), dataset)
    sources = open_splits(config.data, _splits(config, method), faults)
    report = report_data(sources, dataset, config.data, thorough=thorough)
    faults.add(report.faults)
    faults.add(_ood_faults(config, sources))
    if method is not None and "ood" in method.streams and "ood" in sources:
        if config.ovs.labels == "cached":
            with faults.collected():
                cached = _check_cached(labels_folder(config.ovs.labels_dir), report.ood_ids, faults)
        elif config.ovs.labels == "external" and dataset is not None:
            with faults.collected():
                _check_external(config, sources["ood"], dataset, method)
    with faults.collected():
        check_evaluation(config.eval, report.val_sizes, student.size_multiple if student else 1)
    experiment = None
    if not faults.found:
        assert dataset is not None
        assert method is not None
        assert options is not None
        assert student is not None
        experiment = Experiment(dataset, method, options, student, sources, report)
    warnings = list(report.warnings)
    if dataset is not None:
        warnings += [text for words in vocabularies.values() if (text := unknown_names(words, dataset))]
    return Inspection(dataset, method, vocabularies, report, cached, tuple(faults.found), tuple(warnings), experiment)


def _splits(config: ml_collections.ConfigDict, method: Method | None) -> list[str]:
    """The splits that a run reads."""
    streams = method.streams if method else ("labeled", "unlabeled")
    ood = config.method.ood != "none" if method else False
    return [*(name for name in ("labeled", "unlabeled") if name in streams), "val", *["ood"] * ood]


def _check_cached(folder: Path, ids: Sequence[str], faults: Faults) -> dict[str, int]:
    """Number of OOD images by the state of their cached label; adds damaged or missing files to the faults."""
    cache = open_label_cache(folder)
    faults.add(cache.faults())
    if not ids:
        return {}
    labeled, missing = sum(map(cache.is_labeled, ids)), len(unsettled(cache, ids))
    return {"labeled": labeled, "bad": len(ids) - labeled - missing, "missing": missing}


def _check_external(config: ml_collections.ConfigDict, source: Source, dataset: DatasetInfo, method: Method) -> None:
    """Checks label files of another tool; raises `InputError` with all that is wrong with them."""
    labels = open_external_labels(labels_folder(config.ovs.labels_dir))
    faults = external_faults(labels, source, dataset, max(1, config.data.num_threads))
    if not faults and (fault := missing_confidence(labels, source, method.ovs_threshold)):
        faults = [fault]
    if faults:
        raise InputError(*(fault.message for fault in faults))


def _ood_faults(config: ml_collections.ConfigDict, sources: Mapping[str, Source]) -> Iterator[str]:
    """What is wrong with the way in which OOD images, their labels and their selection go together."""
    if config.method.ood == "none":
        return
    keys = Filter(config.data.ood_min_foreground, config.data.ood_repeat_threshold)
    if fault := filter_fault(keys, config.method.ood, config.ovs.labels):
        yield fault
    scanned = "ood" in sources and not sources["ood"].prepared
    if scanned and (fault := labels_dir_fault(config.data, config.ovs.labels_dir)):
        yield fault
