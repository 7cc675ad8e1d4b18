"""Digests of what a run reads: its split lists, OOD images, classes, words, cached labels and weights."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ml_collections

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.files import expand
from data_pipelines.labels.manifest import labels_folder, read_manifest
from data_pipelines.loading.streams import open_config_split
from semiovs_jax.checkpoints.checkpointer import state_sha256
from semiovs_jax.experiment import read_sections
from semiovs_jax.labelers import sections_with_words
from semiovs_jax.methods import make_unchecked
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.weights.files import file_sha256, read_metadata
from semiovs_jax.weights.parts import weights_path


def run_digests(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Hex digests of the content behind the config keys that name data and weights.

    What cannot be read is left out; `config_checks` names it. No image is read: a split list counts by its bytes, a
    folder or a prepared dataset without a list by the ids of its images, cached labels by the model and the images that
    their manifest names, weights by the digest in their metadata, which is verified when they are loaded, and a
    checkpoint by the checksums of its files.

    Args:
      config: an experiment, see `configs/common.py`.
    """
    digests = {}
    for key, digest in _digests(config):
        with contextlib.suppress(InputError, OSError, ValueError):
            digests[key] = digest()
    return digests


def _digests(config: ml_collections.ConfigDict) -> Iterator[tuple[str, Callable[[], str]]]:
    method = make_unchecked(config.method)
    if method is None:
        return
    yield "data.dataset", partial(_classes, config.data.dataset)
    for split in ("labeled", "unlabeled", "val"):
        if split in (*method.streams, "val"):
            yield f"data.{split}_split", partial(_split, config.data, split)
    if config.method.ood != "none":
        yield "data.ood_root", partial(_split, config.data, "ood")
    words = sections_with_words(read_sections(config), method)
    if "ovs" in words and config.ovs.labels == "cached":
        yield "ovs.labels_dir", partial(_labels, config.ovs.labels_dir)
    for section in words:
        yield f"{section}.vocabulary", partial(_words, read_sections(config)(section))
    if not config.model.random_init:
        yield "model.weights", partial(_weights, config.model.weights)
    for section in dict.fromkeys((*words, "clip")):  # students of CLIP embed their class names with config.clip
        yield f"{section}.weights", partial(_weights, read_sections(config)(section).weights)


def _classes(name_or_path: str) -> str:
    info = dataset_info(name_or_path)
    return _sha256(json.dumps([info.classes, info.ignore_index, info.background]))


def _split(data_config: Any, split: str) -> str:
    root = expand(data_config.ood_root if split == "ood" else data_config.root)
    listed = root / data_config[f"{split}_split"]
    if listed.is_file() and listed.suffix != ".json":
        return file_sha256(listed)
    mixture = root.read_text(encoding="utf-8") if root.is_file() else ""
    return _sha256("\n".join((mixture, *open_config_split(data_config, split).ids())))


def _labels(labels_dir: str) -> str:
    manifest = read_manifest(labels_folder(labels_dir)) or {}
    if "fingerprint" not in manifest:
        raise InputError(f"{labels_dir}: no labels yet")
    # Another model, or the same one on replaced images.
    return _sha256(manifest["fingerprint"] + manifest.get("images_sha256", ""))


def _words(section: Any) -> str:
    return load_vocabulary(section.vocabulary, templates=section.get("templates", "")).sha256


def _weights(name_or_path: str) -> str:
    path = weights_path(name_or_path)
    if path.is_dir():  # a run, from which a student starts
        return state_sha256(path)
    return read_metadata(path).get("sha256") or file_sha256(path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
