"""Checks a vocabulary against the dataset whose images it labels."""

from typing import Any

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError, first_few
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary


def check_words(section: str, config: Any, dataset: DatasetInfo | None) -> Vocabulary:
    """The vocabulary of a section of the config.

    Args:
      section: its name, for messages.
      config: the section, with the key vocabulary and maybe templates.
      dataset: the classes; None if unknown.

    Raises:
      InputError: the vocabulary or its templates cannot be used, or classes are at other indices than in the dataset.
    """
    num_classes = dataset.num_classes if dataset else None
    try:
        vocabulary = load_vocabulary(config.vocabulary, num_classes, templates=config.get("templates", ""))
    except InputError as error:
        raise InputError(f"config.{section}.vocabulary: {error}".replace("\n  ", " ")) from error
    if dataset and (moved := _moved(vocabulary, dataset)):
        raise InputError(
            f"config.{section}.vocabulary: {vocabulary.origin}: {len(moved)} class(es) are where {dataset.name} has "
            f"others: {first_few(moved)}; write the classes in the dataset's order, or one is labeled as the other"
        )
    return vocabulary


def unknown_names(vocabulary: Vocabulary, dataset: DatasetInfo) -> str | None:
    """A warning about classes whose names the dataset does not have; None if there are none."""
    known = set(map(_letters, dataset.classes))
    renamed = [
        f"class {index} is {name!r}, in the dataset {dataset.classes[index]!r}"
        for index, name in enumerate(vocabulary.classes)
        if _letters(name) not in known
    ]
    if not renamed:
        return None
    return (
        f"{vocabulary.origin}: {len(renamed)} class(es) have names that {dataset.name} has not: {first_few(renamed)}; "
        "make sure that both mean the same"
    )


def _moved(vocabulary: Vocabulary, dataset: DatasetInfo) -> list[str]:
    """Names of the dataset at other indices: a class's index is its label."""
    places = {_letters(name): index for index, name in enumerate(dataset.classes)}
    return [
        f"class {index} is {name!r}, in the dataset {dataset.classes[index]!r}"
        for index, name in enumerate(vocabulary.classes)
        if places.get(_letters(name), index) != index
    ]


def _letters(name: str) -> str:
    """What "dining table", "diningtable" and "Dining-Table" have in common."""
    return "".join(filter(str.isalnum, name.lower())) or name
