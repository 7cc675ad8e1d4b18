"""Classes and words of the command line: --classes of `label`, which needs no config file of the user.

The words and the colors of the classes become two files in the folder of the labels, which a config can name.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from data_pipelines.checking.survey import labels_dir_fault
from data_pipelines.datasets import dataset_info
from data_pipelines.datasets.colors import distinct_colors
from data_pipelines.errors import Faults, InputError
from data_pipelines.files import as_path, is_remote, read_json
from data_pipelines.labels.manifest import MANIFEST, read_manifest, write_whole
from data_pipelines.loading.streams import open_config_split
from semiovs_jax.ovs.class_list import vocabulary_of_list
from semiovs_jax.ovs.vocabulary import is_vocabulary, load_vocabulary
from semiovs_jax.weights.parts import weights_path

CLASSES, VOCABULARY = "classes.json", "vocabulary.json"

_BACKGROUND = "background"  # the class with this name is the background of the dataset
_IGNORE_INDEX = 255


class _Words(NamedTuple):
    text: str  # of the vocabulary file
    classes: tuple[str, ...]
    origin: Path | None  # the file that --classes names


@contextlib.contextmanager
def own_words(config: ml_collections.ConfigDict, classes: str, *, labels: bool) -> Iterator[Path]:
    """Writes the words and colors of classes to the folder of the labels, and sets the config to them.

    Files that are there, and fit, are kept: colors may be edited, and the same words make the same files.

    Args:
      config: an experiment with the paths of the images and of the labels, which is changed.
      classes: a list, see `vocabulary_of_list`, or the name or path of a vocabulary.
      labels: whether the body makes labels. Otherwise no weights are needed.

    Yields:
      The folder. If the body raises `InputError` and has begun no labels, the files that are new are removed.

    Raises:
      InputError: the list or the vocabulary is invalid, files in the folder have other words or classes, or images or
        weights are missing; all in one error.
    """
    faults, words = Faults(), None
    folder = as_path(config.ovs.labels_dir, "--out")
    with faults.collected():
        words = _read(classes)
    with faults.collected("--source: "):
        open_config_split(config.data, "ood")
    if fault := labels_dir_fault(config.data, config.ovs.labels_dir):
        faults.add([fault])
    if labels and not weights_path(config.ovs.weights).is_file():
        faults.add([_missing_weights(config.ovs.weights)])
    files = {}
    if words is not None:
        files = {folder / VOCABULARY: words.text, folder / CLASSES: _classes_file(words.classes)}
        with faults.collected():
            faults.add(_conflicts(folder, words))
    faults.refuse()
    config.data.dataset = str(folder / CLASSES)
    config.ovs.vocabulary = str(folder / VOCABULARY)
    begun = (folder / MANIFEST).exists()
    new = [path for path in files if not path.exists()]
    for path in new:
        write_whole(path, files[path])
    try:
        _refuse_edited(config, folder, classes)
        yield folder
    except InputError:
        if begun or not (folder / MANIFEST).exists():
            for path in new:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _read(classes: str) -> _Words:
    if not is_vocabulary(classes):
        content = vocabulary_of_list(classes)
        return _Words(_as_json(content), tuple(entry["name"] for entry in content["classes"]), None)
    vocabulary = load_vocabulary(classes)
    origin = as_path(vocabulary.origin, "--classes")
    return _Words(origin.read_text(encoding="utf-8-sig"), vocabulary.classes, origin)


def _conflicts(folder: Path, words: _Words) -> Iterator[str]:
    """What is wrong with files that are in the folder already."""
    vocabulary, classes = folder / VOCABULARY, folder / CLASSES
    if vocabulary.exists() and not _same(vocabulary, words):
        yield (
            f"{vocabulary}: has other words than --classes; to label with this file, pass --classes={vocabulary} and a "
            f"new folder: --out={_other(folder)}; to label with --classes, choose a new folder, too"
        )
    elif classes.exists() and (found := dataset_info(classes).classes) != words.classes:
        yield (
            f"{classes}: has the classes {', '.join(found)}, but --classes has {', '.join(words.classes)}; choose a "
            f"new folder: --out={_other(folder)}"
        )


def _same(path: Path, words: _Words) -> bool:
    """Whether a vocabulary file has these words, or is the file that --classes names."""
    if words.origin is not None and _same_file(words.origin, path):
        return True
    try:
        return read_json(path) == json.loads(words.text)
    except (OSError, ValueError):
        return False


def _same_file(first: Path, second: Path) -> bool:
    return first == second if is_remote(first) or is_remote(second) else first.samefile(second)


def _refuse_edited(config: ml_collections.ConfigDict, folder: Path, classes: str) -> None:
    """Refuses other words than those by which the images of the folder are labeled."""
    manifest = read_manifest(folder)
    sha256 = load_vocabulary(config.ovs.vocabulary, templates=config.ovs.get("templates", "")).sha256
    if manifest and manifest.get("vocabulary_sha256", sha256) != sha256:
        raise InputError(
            f"{folder}: the labels are made by other words or templates than --classes and config.ovs.templates name; "
            f"label into a new folder: --classes={shlex.quote(classes)} --out={_other(folder)}"
        )


def _other(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_2")


def _missing_weights(weights: str) -> str:
    return (
        f"config.ovs.weights={weights!r}: no such file; name the weights of an open-vocabulary model: "
        "--ovs_weights=FILE. To get those of SED: python -m semiovs_jax.fetch sed_large, then "
        "python -m semiovs_jax.convert weights/sed_model_large.pth weights/sed_large.safetensors --kind=sed. The "
        "weights that are shipped, shapes_sed, know the drawn shapes of the embedded benchmark alone"
    )


def _classes_file(classes: tuple[str, ...]) -> str:
    content = {
        "name": "classes",
        "classes": list(classes),
        "palette": distinct_colors(len(classes)).tolist(),
        "ignore_index": _IGNORE_INDEX,
        "background": classes.index(_BACKGROUND) if _BACKGROUND in classes else None,
    }
    return _as_json(content)


def _as_json(content: Mapping[str, Any]) -> str:
    """JSON that is easy to edit: a line for each key, and for each class with its words."""
    lines = (f"  {_encoded(key)}: {_encoded_lines(value)}" for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _encoded_lines(value: Any) -> str:
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return _encoded(value)
    return "[\n" + ",\n".join(f"    {_encoded(item)}" for item in value) + "\n  ]"


def _encoded(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
