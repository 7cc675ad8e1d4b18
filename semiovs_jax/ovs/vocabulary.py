"""Vocabularies: the words that describe the classes of a dataset to an open-vocabulary model.

The score of a class is the maximum over its concepts. A concept is one text embedding, the mean over its synonyms. One
JSON file holds classes, concepts and templates:

    {
      "name": "voc21",
      "source": "where the words come from",
      "templates": ["a photo of a {}"],
      "counts": {"classes": 21, "concepts": 171},
      "classes": [
        {"name": "background", "concepts": ["truck", "traffic light"]},
        {"name": "aeroplane", "concepts": [["aeroplane", "airplane", "glider"]]}
      ]
    }

Classes are in label order. If class 0 means "everything else", its concepts list what that is. A concept is one name
or a list of synonyms. `counts` is optional; it detects accidental edits.

A template set is a separate file, a JSON list of prompts. It can replace the templates of a vocabulary.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.errors import InputError
from data_pipelines.files import as_path, is_utf8, read_json

_FOLDER = Path(__file__).parent / "vocabularies"
_TEMPLATES = Path(__file__).parent / "templates"
_KEYS = {"name", "source", "templates", "counts", "classes"}


class _CountsTokens(Protocol):
    context_length: int

    def count(self, texts: Sequence[str]) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class Concept:
    """The words of one text embedding.

    Attributes:
      class_index: the class that the concept belongs to.
      synonyms: names of the same thing, whose embeddings are averaged.
    """

    class_index: int
    synonyms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Classes, their concepts and the prompt templates.

    Attributes:
      name: short name, which is recorded with cached labels.
      source: where the words come from.
      classes: class names in label order.
      concepts: concepts, those of class 0 first.
      templates: prompts with one `{}` for the name.
      origin: path of the file, for error messages.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    concepts: tuple[Concept, ...]
    templates: tuple[str, ...]
    origin: str = dataclasses.field(default="", compare=False)

    @property
    def class_of_concept(self) -> tuple[int, ...]:
        """The class of every concept, ascending: segment ids for the maximum over the concepts of a class."""
        return tuple(concept.class_index for concept in self.concepts)

    @property
    def sha256(self) -> str:
        """Hex digest of everything that decides the embeddings: classes, concepts and templates."""
        content = [self.classes, [(c.class_index, c.synonyms) for c in self.concepts], self.templates]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def split_synonyms(self) -> "Vocabulary":
        """The vocabulary with every synonym as a concept of its own.

        The score of a class is then the maximum over its synonyms (SemiVL's MaskCLIP labels), not the maximum over
        means of synonyms (SED).
        """
        concepts = tuple(
            Concept(concept.class_index, (synonym,)) for concept in self.concepts for synonym in concept.synonyms
        )
        return dataclasses.replace(self, concepts=concepts)

    def prompts(self, concept: Concept) -> list[list[str]]:
        """Prompts of `concept`: one list per template, with one prompt per synonym."""
        return [[template.format(name) for name in concept.synonyms] for template in self.templates]

    def check_prompts(self, tokenizer: _CountsTokens) -> None:
        """Raises an InputError that names every concept with a prompt too long for `tokenizer`."""
        context = tokenizer.context_length
        faults = []
        for concept in self.concepts:
            prompts = [prompt for per_template in self.prompts(concept) for prompt in per_template]
            longest, prompt = max(zip(tokenizer.count(prompts), prompts, strict=True))
            if longest > context:
                faults.append(
                    f'class "{self.classes[concept.class_index]}": "{prompt}" has {longest} tokens,'
                    f" the text tower reads at most {context}"
                )
        if faults:
            raise InputError("\n  ".join([f"{self.origin}: over-long prompts; shorten them:", *faults]))


def load_vocabulary(name_or_path: str, num_classes: int | None = None, *, templates: str = "") -> Vocabulary:
    """Reads and checks a vocabulary.

    Args:
      name_or_path: name of a shipped vocabulary ("voc21", "context60", "coco_stuff171", "shapes") or path of a
        JSON file.
      num_classes: number of classes the dataset has, or None to accept any.
      templates: template set that replaces the file's own, as in `load_templates`; "" keeps them.

    Raises:
      InputError: the file is missing or malformed, a name is empty or occurs twice, a class has no concept, or the
        counts are wrong. One error lists all faults.
    """
    path, content = _read_json("vocabulary", name_or_path, _FOLDER)
    faults = vocabulary_faults(content)
    if not faults and num_classes is not None and len(content["classes"]) != num_classes:
        faults = [
            f"{len(content['classes'])} classes, but the dataset has {num_classes}; give one entry for each class of "
            "the dataset, in its order"
        ]
    if faults:
        raise InputError("\n  ".join([f"{path}: invalid vocabulary; fix:", *faults]))
    concepts = tuple(
        Concept(index, _synonyms(concept))
        for index, entry in enumerate(content["classes"])
        for concept in entry["concepts"]
    )
    return Vocabulary(
        name=content["name"],
        source=content["source"],
        classes=tuple(entry["name"] for entry in content["classes"]),
        concepts=concepts,
        templates=load_templates(templates) if templates else tuple(content["templates"]),
        origin=str(path),
    )


def is_vocabulary(name: str) -> bool:
    """Whether a text is the name of a shipped vocabulary or the path of a JSON file, rather than a list of words."""
    return name.endswith(".json") or name in {file.stem for file in _FOLDER.glob("*.json")}


def vocabulary_of_names(name: str, classes: Sequence[str], template: str) -> Vocabulary:
    """A vocabulary of class names only, each in one prompt (SemiVL's "single" text embeddings).

    Args:
      name: name of the vocabulary.
      classes: class names in label order.
      template: prompt with one `{}` for the name.

    Raises:
      InputError: the template does not contain exactly one `{}`.
    """
    if faults := _template_faults([template]):
        raise InputError(f"{name}: {faults[0]}")
    concepts = tuple(Concept(index, (word,)) for index, word in enumerate(classes))
    return Vocabulary(name, "the class names", tuple(classes), concepts, (template,), origin=name)


def load_templates(name_or_path: str) -> tuple[str, ...]:
    """Reads and checks a template set.

    Args:
      name_or_path: name of a shipped set, or path of a JSON list of prompts, each with one `{}` for the name. The
        shipped set is "imagenet80": the 80 ImageNet prompts of OpenAI's CLIP, in the order of openai/CLIP,
        `notebooks/Prompt_Engineering_for_ImageNet.ipynb`. They are the input channels of SED's first layer.

    Raises:
      InputError: the file is missing or malformed, or a prompt occurs twice or does not contain exactly one `{}`.
    """
    path, content = _read_json("template set", name_or_path, _TEMPLATES)
    if faults := _template_faults(content):
        raise InputError("\n  ".join([f"{path}: invalid template set; fix:", *faults]))
    return tuple(content)


def _read_json(kind: str, name_or_path: str, shipped: Path) -> tuple[Path, Any]:
    path = shipped / f"{name_or_path}.json"
    if not path.exists():
        path = as_path(name_or_path, kind)
    try:
        return path, read_json(path)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.json")))
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{kind} {name_or_path}: {reason}. Set it to the path of a JSON file, or to one of: {known}"
        ) from error


def _synonyms(concept: str | list[str]) -> tuple[str, ...]:
    return (concept,) if isinstance(concept, str) else tuple(concept)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_utf8(value)


def vocabulary_faults(content: Any) -> list[str]:
    """All faults of the parsed JSON of a vocabulary, one line each."""
    if not isinstance(content, dict):
        return ["the top level must be an object"]
    faults = [f"unknown key {json.dumps(key)}" for key in sorted(content.keys() - _KEYS)]
    faults += [f'"{key}" must be a non-empty string' for key in ("name", "source") if not _is_text(content.get(key))]
    faults += _template_faults(content.get("templates"))
    classes = content.get("classes")
    if not isinstance(classes, list) or not classes:
        return [*faults, '"classes" must be a non-empty list']
    names: list[str] = []
    words: list[tuple[str, str]] = []
    for index, entry in enumerate(classes):
        if not isinstance(entry, dict) or not _is_text(entry.get("name")):
            faults.append(f'class {index}: must be an object with "name" and "concepts"')
            continue
        names.append(entry["name"])
        concepts = entry.get("concepts")
        if not isinstance(concepts, list) or not concepts:
            faults.append(f'class {index} "{entry["name"]}": has no concepts')
            continue
        for concept in concepts:
            synonyms = [concept] if isinstance(concept, str) else concept
            if not isinstance(synonyms, list) or not synonyms or not all(map(_is_text, synonyms)):
                faults.append(
                    f'class {index} "{entry["name"]}": concept {json.dumps(concept)} must be a name'
                    " or a list of synonyms"
                )
                continue
            words += [(" ".join(word.lower().split()), entry["name"]) for word in synonyms]
    faults += [f'class "{name}" occurs {n} times' for name, n in Counter(names).items() if n > 1]
    for word, n in Counter(word for word, _ in words).items():
        if n > 1:
            owners = ", ".join(sorted({owner for other, owner in words if other == word}))
            faults.append(f'concept "{word}" occurs {n} times (in {owners})')
    return faults or _count_faults(content)


def _template_faults(templates: Any) -> list[str]:
    if not isinstance(templates, list) or not templates:
        return ['"templates" must be a non-empty list']
    faults = [
        f"template {json.dumps(t)} must be a string with exactly one {{}}"
        for t in templates
        if not isinstance(t, str) or not is_utf8(t) or t.count("{}") != 1 or t.count("{") != 1 or t.count("}") != 1
    ]
    if not faults:
        faults += [f'template "{t}" occurs {n} times' for t, n in Counter(templates).items() if n > 1]
    return faults


def _count_faults(content: dict[str, Any]) -> list[str]:
    found = {
        "classes": len(content["classes"]),
        "concepts": sum(len(entry["concepts"]) for entry in content["classes"]),
    }
    expected = content.get("counts", {})
    if not isinstance(expected, dict) or expected.keys() - found.keys():
        return ['"counts" may contain "classes" and "concepts" only']
    return [
        f'"counts" expects {json.dumps(n)} {key}, found {found[key]}' for key, n in expected.items() if n != found[key]
    ]
