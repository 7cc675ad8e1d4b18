import jax
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.shapes.drawing import IGNORE_INDEX, SCENE_CLASSES
from data_pipelines.shapes.outlines import TARGETS
from semiovs_jax.ovs.training import scenes
from semiovs_jax.ovs.vocabulary import load_vocabulary


def test_scenes_carry_concepts() -> None:
    vocabulary = load_vocabulary("shapes", 1 + len(TARGETS))
    concepts = scenes.concept_of_scene_class(vocabulary)
    assert sorted(concepts) == list(range(len(vocabulary.concepts)))
    for scene_class, concept in enumerate(concepts):
        assert vocabulary.concepts[concept].class_index == (scene_class if scene_class <= len(TARGETS) else 0)
    drawn = scenes.draw_scenes(0, 3, 32, 16, concepts)
    assert drawn.image.shape == (3, 32, 32, 3)
    assert drawn.label.shape == (3, 16, 16)
    assert set(np.unique(drawn.label)) <= {*range(len(SCENE_CLASSES)), IGNORE_INDEX}


def test_other_words_are_refused() -> None:
    with pytest.raises(InputError, match="the first synonyms of its concepts must be background, circle"):
        scenes.concept_of_scene_class(load_vocabulary("voc21"))


@pytest.fixture
def numbered() -> scenes.Scenes:
    """Scenes whose pixels tell their number and column."""
    number, column = np.meshgrid(np.arange(5), np.arange(8), indexing="ij")
    plane = np.broadcast_to((10 * number + column)[:, None], (5, 8, 8)).astype(np.uint8)
    return scenes.Scenes(np.stack([plane] * 3, axis=-1), plane[:, ::2, ::2])


def test_batches_mirror_image_and_label_together(numbered: scenes.Scenes) -> None:
    batches = scenes.scene_batches(numbered, 16, seed=0)
    first, second = next(batches)["labeled"], next(batches)["labeled"]
    assert not np.array_equal(first["image"], second["image"])
    label, image = first["label"], first["image"][..., 1]
    mirrored = image[:, 0, 0] > image[:, 0, -1]
    assert 0 < mirrored.sum() < 16
    unmirrored = np.where(mirrored[:, None, None], label[:, :, ::-1], label)
    np.testing.assert_array_equal(unmirrored, numbered.label[image[:, 0, 0] // 10])
    assert first["valid"].all()
    assert set(image[:, 0, 0] // 10) == set(range(5))


def test_batches_depend_on_seed_and_step_alone(numbered: scenes.Scenes) -> None:
    whole = scenes.scene_batches(numbered, 4, seed=3)
    shares = [scenes.scene_batches(numbered, 4, seed=3, process_index=i, process_count=2) for i in range(2)]
    next(whole)
    position = whole.get_state()
    batch = next(whole)
    for share in shares:
        next(share)
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(next(share) for share in shares))
    whole.set_state(position)
    for other in (joined, next(whole)):
        jax.tree.map(np.testing.assert_array_equal, other, batch)
    other_seed = scenes.scene_batches(numbered, 4, seed=4)
    next(other_seed)
    assert not np.array_equal(next(other_seed)["labeled"]["image"], batch["labeled"]["image"])


def test_held_out_distractors_are_background() -> None:
    for image, label in scenes.held_out_scenes(0, 5):
        assert image.shape == (*label.shape, 3)
        assert max(label.shape) <= scenes.MAX_SIDE
        assert set(np.unique(label)) <= {*range(1 + len(TARGETS)), IGNORE_INDEX}
