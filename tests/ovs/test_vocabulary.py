import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.vocabulary import Concept, Vocabulary, load_templates, load_vocabulary, vocabulary_of_names
from tests.golden import Golden, golden_path
from tests.replays import sed_vocab

GOOD = {
    "name": "pets",
    "source": "made for this test",
    "templates": ["a photo of a {}", "a drawing of a {}"],
    "counts": {"classes": 3, "concepts": 4},
    "classes": [
        {"name": "background", "concepts": ["sky", "grass"]},
        {"name": "cat", "concepts": [["cat", "kitten"]]},
        {"name": "dog", "concepts": ["dog"]},
    ],
}


def write(folder, **changes) -> str:
    path = folder / "pets.json"
    path.write_text(json.dumps(GOOD | changes))
    return str(path)


def test_concepts_stand_in_label_order(tmp_path):
    vocabulary = load_vocabulary(write(tmp_path), num_classes=3)
    assert vocabulary.classes == ("background", "cat", "dog")
    assert vocabulary.concepts == (
        Concept(0, ("sky",)),
        Concept(0, ("grass",)),
        Concept(1, ("cat", "kitten")),
        Concept(2, ("dog",)),
    )
    assert vocabulary.class_of_concept == (0, 0, 1, 2)
    assert vocabulary.prompts(vocabulary.concepts[2]) == [
        ["a photo of a cat", "a photo of a kitten"],
        ["a drawing of a cat", "a drawing of a kitten"],
    ]


def test_split_synonyms_keeps_words_and_classes(tmp_path):
    split = load_vocabulary(write(tmp_path)).split_synonyms()
    assert [c.synonyms for c in split.concepts] == [("sky",), ("grass",), ("cat",), ("kitten",), ("dog",)]
    assert split.class_of_concept == (0, 0, 1, 1, 2)


def test_digest_follows_content_not_place(tmp_path):
    original = load_vocabulary(write(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    assert load_vocabulary(write(tmp_path / "elsewhere", source="another")).sha256 == original.sha256
    changed = load_vocabulary(write(tmp_path, templates=["a photo of a {}"]))
    assert changed.sha256 != original.sha256
    assert original.split_synonyms().sha256 != original.sha256


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"classes": []}, '"classes" must be a non-empty list'),
        ({"classes": [{"name": "cat", "concepts": []}]}, 'class 0 "cat": has no concepts'),
        ({"classes": [{"concepts": ["cat"]}]}, "class 0: must be an object"),
        ({"classes": [{"name": "cat", "concepts": [["cat", ""]]}]}, 'class 0 "cat": concept ["cat", ""]'),
        (
            {"classes": [{"name": "cat", "concepts": ["pet"]}, {"name": "dog", "concepts": [["dog", "Pet"]]}]},
            'concept "pet" occurs 2 times (in cat, dog)',
        ),
        (
            {"classes": [{"name": "cat", "concepts": ["cat"]}, {"name": "cat", "concepts": ["kitten"]}]},
            'class "cat" occurs 2 times',
        ),
        ({"templates": ["a photo"]}, 'template "a photo" must be a string with exactly one {}'),
        ({"templates": ["a {x} of {}"]}, "exactly one {}"),
        ({"templates": ["a {}", "a {}"]}, 'template "a {}" occurs 2 times'),
        ({"counts": {"concepts": 5}}, '"counts" expects 5 concepts, found 4'),
        ({"name": ""}, '"name" must be a non-empty string'),
        ({"template": "a {}"}, 'unknown key "template"'),
        ({"classes": [{"name": "cat", "concepts": ["\ud800"]}]}, 'class 0 "cat": concept "\\ud800" must be a name'),
        ({"templates": ["\ud800 {}"]}, 'template "\\ud800 {}" must be a string'),
    ],
)
def test_faults_name_file_and_entry(tmp_path, changes, complaint):
    path = write(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        load_vocabulary(path)
    assert path in str(caught.value)
    assert complaint in str(caught.value)


def test_a_byte_order_mark_is_skipped_and_too_many_levels_are_refused(tmp_path):
    path = Path(write(tmp_path))
    content = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert load_vocabulary(str(path)).classes
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_vocabulary(str(path))


def test_all_faults_come_at_once(tmp_path):
    path = write(tmp_path, name="", classes=[{"name": "cat", "concepts": []}])
    with pytest.raises(InputError, match=r'(?s)"name" must be.*has no concepts'):
        load_vocabulary(path)


def test_wrong_class_count(tmp_path):
    with pytest.raises(InputError, match="3 classes, but the dataset has 21"):
        load_vocabulary(write(tmp_path), num_classes=21)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(InputError, match=r"vocabulary nowhere: .*or to one of: coco_stuff171, context60"):
        load_vocabulary("nowhere")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json"):
        load_vocabulary(str(tmp_path / "bad.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="must be an object"):
        load_vocabulary(str(tmp_path / "list.json"))


def test_a_template_set_replaces_the_templates(tmp_path):
    own = load_vocabulary(write(tmp_path))
    (tmp_path / "set.json").write_text('["the {}"]')
    replaced = load_vocabulary(write(tmp_path), templates=str(tmp_path / "set.json"))
    assert replaced.templates == ("the {}",)
    assert replaced.concepts == own.concepts
    assert replaced.sha256 != own.sha256
    assert load_vocabulary(write(tmp_path), templates="imagenet80").templates == load_templates("imagenet80")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{}", '"templates" must be a non-empty list'),
        ("[]", '"templates" must be a non-empty list'),
        ('["a photo"]', 'template "a photo" must be a string with exactly one {}'),
        ('["a {}", "a {}"]', 'template "a {}" occurs 2 times'),
        ("[", "Set it to the path of a JSON file, or to one of: imagenet80"),
    ],
)
def test_faults_of_a_template_set_name_its_file(tmp_path, content, complaint):
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(InputError) as caught:
        load_templates(str(tmp_path / "set.json"))
    assert str(tmp_path / "set.json") in str(caught.value)
    assert complaint in str(caught.value)


def test_over_long_prompts_name_the_class(tmp_path):
    vocabulary = load_vocabulary(write(tmp_path))
    vocabulary.check_prompts(make_tokenizer("bytes", 23))
    with pytest.raises(InputError, match=r'pets\.json.*\n.*class "cat": "a drawing of a kitten" has 23 tokens'):
        vocabulary.check_prompts(make_tokenizer("bytes", 22))


def letters(name: str) -> str:
    """The name without what datasets and prompts write differently: "tvmonitor", "tv/monitor"."""
    return "".join(filter(str.isalpha, name))


@pytest.mark.parametrize("name", ["voc21", "voc21_semivl", "context60", "shapes"])
def test_shipped_vocabularies_fit_their_datasets_and_clip(name):
    info = dataset_info(name.removesuffix("_semivl"))
    vocabulary = load_vocabulary(name, num_classes=info.num_classes)
    assert vocabulary.source
    vocabulary.check_prompts(make_tokenizer("clip_bpe", 77))
    assert [letters(c) for c in vocabulary.classes] == [letters(c) for c in info.classes]


def test_voc21_is_the_vocabulary_of_the_paper():
    golden = Golden(golden_path("sed_vocab"))
    vocabulary = load_vocabulary("voc21")
    assert [", ".join(concept.synonyms) for concept in vocabulary.concepts] == golden.meta["names"]
    assert list(np.bincount(vocabulary.class_of_concept)) == golden.meta["voc_group_sizes"]
    assert list(vocabulary.classes[1:]) == golden.meta["voc_classes"]


def test_voc21_semivl_has_the_concepts_of_the_reference():
    vocabulary = load_vocabulary("voc21_semivl")
    per_class = np.bincount(vocabulary.class_of_concept)
    # The groups of concepts in the golden of the MaskCLIP labels (meta["class_to_concept_idxs"]).
    assert per_class.tolist() == [45, 3, 3, 1, 4, 4, 2, 4, 2, 3, 1, 2, 2, 4, 4, 4, 3, 1, 1, 2, 3]
    assert vocabulary.split_synonyms() == vocabulary
    assert vocabulary.templates == ("a photo of a {}",)


def test_a_vocabulary_of_names_has_one_concept_a_class():
    vocabulary = vocabulary_of_names("names", ["sky", "cat"], "a photo of a {}")
    assert vocabulary.classes == ("sky", "cat")
    assert [vocabulary.prompts(concept) for concept in vocabulary.concepts] == [
        [["a photo of a sky"]], [["a photo of a cat"]],
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"names: template .* exactly one"):
        vocabulary_of_names("names", ["sky"], "a photo")


def test_context60_has_the_groups_of_the_reference():
    golden = Golden(golden_path("sed_vocab"))
    vocabulary = load_vocabulary("context60")
    assert list(np.bincount(vocabulary.class_of_concept)) == golden.meta["pc60_group_sizes"]
    assert all(len(concept.synonyms) == 1 for concept in vocabulary.concepts)


def test_coco_stuff_is_the_vocabulary_that_voc21_stands_on():
    vocabulary = load_vocabulary("coco_stuff171", num_classes=171)
    vocabulary.check_prompts(make_tokenizer("clip_bpe", 77))
    assert [concept.synonyms for concept in vocabulary.concepts] == [(name,) for name in vocabulary.classes]
    assert vocabulary.class_of_concept == tuple(range(171))
    background = Golden(golden_path("sed_vocab")).meta["names"][:151]
    assert [name for name in vocabulary.classes if name in background] == background


def test_imagenet80_is_the_template_set_of_the_paper():
    assert list(load_templates("imagenet80")) == Golden(golden_path("sed_vocab")).meta["templates"]


def test_every_prompt_of_the_paper_has_its_ids():
    meta = Golden(golden_path("sed_vocab")).meta
    vocabulary = load_vocabulary("voc21", templates="imagenet80")
    tokenizer = make_tokenizer("clip_bpe", 77)
    prompts = [[text for row in vocabulary.prompts(concept) for text in row] for concept in vocabulary.concepts]
    assert sum(map(len, prompts)) == meta["n_prompts"]
    ids = [tokenizer.encode(texts).astype("<i4") for texts in prompts]
    assert [hashlib.sha256(rows.tobytes()).hexdigest() for rows in ids] == meta["per_class_sha256"]
    assert hashlib.sha256(np.concatenate(ids).tobytes()).hexdigest() == meta["all_prompt_ids_sha256"]


def test_the_replay_gives_the_goldens_ids():
    golden = Golden(golden_path("sed_vocab"))
    np.testing.assert_array_equal(sed_vocab.replay(golden, False)["token_ids"], golden["token_ids"])


def test_prompt_ids_of_the_paper():
    golden = Golden(golden_path("sed_vocab"))
    words = load_vocabulary("voc21").split_synonyms()
    assert isinstance(words, Vocabulary)
    prompts = [f"a photo of a {concept.synonyms[0]}." for concept in words.concepts]
    ids = make_tokenizer("clip_bpe", 77).encode(prompts)
    width = golden["token_ids"].shape[1]
    np.testing.assert_array_equal(ids[:, :width], golden["token_ids"])
    assert not ids[:, width:].any()
