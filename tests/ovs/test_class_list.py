"""The line of text that names classes and their words."""

import pytest

from data_pipelines.errors import InputError
from semiovs_jax.ovs.class_list import vocabulary_of_list


def test_names_stand_for_themselves_or_for_words_in_their_place():
    content = vocabulary_of_list(" sky,plant = tree| potted plant ,person")
    assert content["classes"] == [
        {"name": "sky", "concepts": ["sky"]},
        {"name": "plant", "concepts": ["tree", "potted plant"]},
        {"name": "person", "concepts": ["person"]},
    ]


def test_all_that_is_wrong_is_told():
    with pytest.raises(InputError) as error:
        vocabulary_of_list("sky,,plant=tree|,=x,person=")
    assert [fault.split(",")[0] for fault in error.value.args] == [f"--classes: entry {n}" for n in (2, 3, 4, 5)]
    with pytest.raises(InputError) as error:
        vocabulary_of_list("plant=tree,wood=Tree,plant=moss")
    assert error.value.args == (
        '--classes: class "plant" occurs 2 times',
        '--classes: concept "tree" occurs 2 times (in plant, wood)',
    )


@pytest.mark.parametrize(("text", "fault"), [("sky", "one class"), (",".join(map(str, range(256))), "256 classes")])
def test_there_are_two_classes_to_255(text: str, fault: str):
    with pytest.raises(InputError, match=f"--classes: {fault}"):
        vocabulary_of_list(text)
