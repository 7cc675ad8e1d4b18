"""Finds everything that is wrong with a config, its weights, words and data, before anything is labeled or compiled.

`main` refuses the faults, `check_data` prints them: one judge for both.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from data_pipelines.checking.report import DataReport, report_data
from data_pipelines.checking.survey import labels_dir_fault, open_splits
from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Faults, InputError
from data_pipelines.labels.cache import open_label_cache, unsettled
from data_pipelines.labels.external import external_faults, missing_confidence, open_external_labels
from data_pipelines.labels.manifest import labels_folder, read_manifest, unlisted_content
from data_pipelines.labels.open_store import open_store
from data_pipelines.labels.verify import Verified, verify_labels
from data_pipelines.loading.options import Options
from data_pipelines.loading.selection import Filter, filter_fault
from data_pipelines.sources.records import Source
from semiovs_jax.embedded_benchmark import outdated_benchmark
from semiovs_jax.evaluation.evaluator import check_evaluation
from semiovs_jax.experiment import Experiment, Names, read_sections, settle_names, stream_fault
from semiovs_jax.initial import initial_weights
from semiovs_jax.labelers import labeler_faults, sections_with_words
from semiovs_jax.methods import Method
from semiovs_jax.ovs import model_fingerprint
from semiovs_jax.ovs.labeling.doubt import confidence_doubt, training_doubt
from semiovs_jax.ovs.labeling.identity import expected_identity
from semiovs_jax.ovs.vocabulary import Vocabulary
from semiovs_jax.ovs.words import check_words, unknown_names
from semiovs_jax.writers import writer_faults

_logger = logging.getLogger(__name__)


class Inspection(NamedTuple):
    """What was found of a config.

    Attributes:
      dataset: its classes; None if they cannot be read.
      method: None if there is no such method.
      vocabularies: the words that labelers read, by the section of the config that names them; those that can be read.
      report: what the splits hold that can be opened.
      cached: number of OOD images by the state of their cached OVS label: "labeled", "bad", "missing", and, if not 0,
        "changed" and "damaged"; empty where the method reads none.
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


def inspect(config: ml_collections.ConfigDict, *, devices: int | None = None, thorough: bool = False) -> Inspection:
    """Looks at everything that can be wrong with a config, its weights, words and data; one fault hides no other.

    Args:
      config: an experiment, see `configs/common.py`.
      devices: number of devices that share a batch; None if unknown.
      thorough: see `report_data`.

    Raises:
      InputError: numbers of another type than the config's, with which nothing else can be checked.
    """
    faults = Faults()
    cached: dict[str, int] = {}
    warnings: list[str] = []
    verified = None
    names, vocabularies = _check_config(config, devices, faults)
    dataset, method, student = names
    sources = open_splits(config.data, _splits(config, method), faults)
    report = report_data(sources, dataset, config.data, thorough=thorough)
    faults.add(report.faults)
    faults.add(_ood_faults(config, sources))
    faults.add(outdated_benchmark(config))
    if method is not None and "ood" in method.streams and "ood" in sources:
        if config.ovs.labels == "cached":
            with faults.collected():
                folder = labels_folder(config.ovs.labels_dir)
                verified = _verify_cached(config, sources["ood"], dataset, faults)
                cached = _count_cached(folder, report.ood_ids, verified)
                warnings += _cached_warnings(folder, verified)
        elif config.ovs.labels == "external" and dataset is not None:
            with faults.collected():
                _check_external(config, sources["ood"], dataset, method)
        if config.batch_size > 0 and "unlabeled" in sources and (fault := stream_fault(config, sources)):
            faults.add([fault])
    with faults.collected():
        check_evaluation(config.eval, report.val_sizes, student.size_multiple if student else 1)
    experiment = None
    if not faults.found:
        dataset, method, student = names.usable(faults)
        experiment = Experiment(dataset, method, Options.read(config.data), student, sources, report, verified)
    warnings = [*report.warnings, *warnings]
    if dataset is not None:
        warnings += [text for words in vocabularies.values() if (text := unknown_names(words, dataset))]
        weights = {section: read_sections(config)(section).weights for section in vocabularies}
        warnings += [text for names in weights.items() if (text := training_doubt(*names, dataset))]
    return Inspection(dataset, method, vocabularies, report, cached, tuple(faults.found), tuple(warnings), experiment)


def refuse_config(config: ml_collections.ConfigDict, *, devices: int | None = None) -> None:
    """Raises one `InputError` with everything that is wrong with a config, its weights and words; opens no image."""
    faults = Faults()
    _check_config(config, devices, faults)
    faults.refuse()


def _check_config(
    config: ml_collections.ConfigDict, devices: int | None, faults: Faults
) -> tuple[Names, dict[str, Vocabulary]]:
    """The parts that a config names, and the words of its labelers by section; adds what is wrong to the faults."""
    names = settle_names(config, faults, devices=devices)
    faults.add(writer_faults(config.train.writers))
    if names.dataset is not None and names.student is not None:
        with faults.collected():
            initial_weights(config, names.dataset, names.student)
    vocabularies: dict[str, Vocabulary] = {}
    if names.method is not None:
        sections = read_sections(config)
        faults.add(labeler_faults(sections, names.method, names.dataset, config.data.crop_size))
        for section in sections_with_words(sections, names.method):
            with faults.collected():
                vocabularies[section] = check_words(section, sections(section), names.dataset)
    return names, vocabularies


def _splits(config: ml_collections.ConfigDict, method: Method | None) -> list[str]:
    """The splits that a run reads."""
    streams = method.streams if method else ("labeled", "unlabeled")
    ood = config.method.ood != "none" if method else False
    return [*(name for name in ("labeled", "unlabeled") if name in streams), "val", *["ood"] * ood]


def _verify_cached(
    config: ml_collections.ConfigDict,
    source: Source,
    dataset: DatasetInfo | None,
    faults: Faults,
) -> Verified:
    """Compares cached labels with their images; adds what labeling does not repair to the faults."""
    folder = labels_folder(config.ovs.labels_dir)
    cache = open_label_cache(folder)
    faults.add(cache.faults())
    verified = verify_labels(cache, source, num_threads=config.data.num_threads)
    other = unlisted_content(folder) or (_stale(config, dataset) if dataset else None)
    faults.add([other] if other else verified.faults)
    return verified


def _stale(config: ml_collections.ConfigDict, dataset: DatasetInfo) -> str | None:
    """The fault of cached labels that another model or other settings made; None if there is none, or not known."""
    try:
        fingerprint = model_fingerprint(config.ovs)
        identity = expected_identity(config.ovs, fingerprint, dataset)
    except InputError:  # the checks of weights and words report it
        return None
    try:
        if fingerprint:
            open_store(labels_folder(config.ovs.labels_dir), identity, dataset, prepared=False).open()
    except InputError as error:
        return str(error)
    return None


def _count_cached(folder: Path, ids: Sequence[str], verified: Verified) -> dict[str, int]:
    """Number of OOD images by the state of their cached label."""
    cache = open_label_cache(folder)
    if not ids:
        return {}
    labeled, missing = sum(map(cache.is_labeled, ids)), len(unsettled(cache, ids))
    unusable = {"changed": len(verified.changed), "damaged": len(verified.damaged)}
    counts = {"labeled": labeled - sum(unusable.values()), "bad": len(ids) - labeled - missing, "missing": missing}
    return counts | {state: count for state, count in unusable.items() if count}


def _cached_warnings(folder: Path, verified: Verified) -> list[str]:
    doubt = confidence_doubt(read_manifest(folder) or {}, folder)
    return [f"{folder}: {message}" for message in verified.messages()] + ([doubt] if doubt else [])


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
