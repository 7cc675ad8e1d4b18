"""Reads the classes of a vocabulary from a line of text, such as "sky,plant=tree|bush,person"."""

from typing import Any

from data_pipelines.errors import InputError
from semiovs_jax.ovs.vocabulary import vocabulary_faults

_FIELD = "--classes"
_MOST = 255  # class indices below the ignore index
_TEMPLATE = "a photo of a {}"


def vocabulary_of_list(text: str) -> dict[str, Any]:
    """The content of a vocabulary file.

    Args:
      text: class names, separated by commas. A name may be followed by "=" and the words that are looked for in its
        place, separated by "|"; each is a concept of its own.

    Raises:
      InputError: a name or a word is missing or occurs twice, or there are too few or too many classes.
    """
    entries = [entry.strip() for entry in text.split(",")]
    content = {
        "name": "classes",
        "source": f"{_FIELD}={text}",
        "templates": [_TEMPLATE],
        "classes": [_class(entry) for entry in entries],
    }
    faults = [
        f"entry {number}, {entry!r}, lacks a name or a word; write NAME or NAME=WORD|WORD, separated by commas"
        for number, entry in enumerate(entries, start=1)
        if not all(_words(entry))
    ]
    faults = faults or vocabulary_faults(content)
    if len(entries) < 2:
        faults.append("one class would get every pixel; name what else is in the images, such as 'other=wall|floor'")
    if len(entries) > _MOST:
        faults.append(f"{len(entries)} classes, expected at most {_MOST}; leave out some")
    if faults:
        raise InputError(*(f"{_FIELD}: {fault}" for fault in faults))
    return content


def _class(entry: str) -> dict[str, Any]:
    name, *concepts = _words(entry)
    return {"name": name, "concepts": concepts or [name]}


def _words(entry: str) -> list[str]:
    """The name, and the words that are looked for in its place if there are any."""
    name, equals, words = entry.partition("=")
    return [word.strip() for word in [name, *(words.split("|") if equals else [])]]
