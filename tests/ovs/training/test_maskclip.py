import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import ovs_shapes
from data_pipelines.errors import InputError
from data_pipelines.shapes.drawing import IGNORE_INDEX
from data_pipelines.shapes.outlines import TARGETS
from semiovs_jax.models.clip.file import load_clip
from semiovs_jax.ovs.maskclip import build, make_maskclip
from semiovs_jax.ovs.training import maskclip as train
from semiovs_jax.ovs.training.quality import label_quality
from semiovs_jax.ovs.training.scenes import (
    MAX_SIDE,
    Scenes,
    concept_of_scene_class,
    data_sha256,
    draw_scenes,
    held_out_scenes,
)
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.weights.files import read_safetensors
from semiovs_jax.weights.parts import weights_path

SHIPPED = weights_path("shapes_clip")


@pytest.fixture(scope="module")
def tiny() -> ml_collections.ConfigDict:
    """The real config, shrunk to two steps of few small images."""
    config = ovs_shapes.get_config().unlock()
    config.data.update(images=6, held_out=2)
    config.model.image_size = 4 * config.model.patch_size
    config.model.visual.update(width=16, num_layers=2, num_heads=2)
    config.model.text.update(width=16, num_layers=1, num_heads=2)
    config.train.update(batch_size=4, steps=2, log_every_steps=1)
    return config.lock()


def test_two_runs_write_the_same_file(tiny: ml_collections.ConfigDict, tmp_path: Path) -> None:
    first, second = (train.train_maskclip(tiny, tmp_path / name) for name in ("first", "second"))
    tensors, metadata = read_safetensors(first)
    # The metadata holds the digest of the tensors; its order in the file is not fixed.
    assert read_safetensors(second)[1] == metadata
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
    assert load_clip(str(first)).config == train.clip_config(tiny.model)
    assert json.loads(metadata["experiment"]) == tiny.to_dict()
    assert set(json.loads(metadata["held_out_iou"])) == {"background", *TARGETS}
    assert len(metadata["data_sha256"]) == 64


def test_step_learns_and_depends_on_the_step(tiny: ml_collections.ConfigDict) -> None:
    config = tiny.copy_and_resolve_references().unlock()
    config.train.update(steps=40, warmup_steps=2)
    vocabulary = load_vocabulary(config.vocabulary)
    clip = train.clip_config(config.model)
    size = config.model.image_size
    scenes = draw_scenes(
        0, config.data.images, size, size // config.train.label_stride, concept_of_scene_class(vocabulary)
    )
    scenes = Scenes(jnp.asarray(scenes.image), jnp.asarray(scenes.label))
    start, step = train.make_train_step(config, clip, train.prompt_table(vocabulary, clip.text.context_length))
    _, at_0 = step(start, scenes)
    _, at_1 = step(start._replace(step=start.step + 1), scenes)
    assert float(at_0["loss"]) != float(at_1["loss"])
    state, losses = start, []
    for _ in range(config.train.steps):
        state, metrics = step(state, scenes)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == config.train.steps
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, state.params)
    still = {jax.tree_util.keystr(path) for path, value in jax.tree_util.tree_leaves_with_path(moved) if not value}
    # The value path reads no query, key of the last block.
    last = config.model.visual.num_layers - 1
    assert all(f"['visual']['layers'][{last}]['attention']" in path for path in still)


def test_prompt_table_holds_every_wording() -> None:
    vocabulary = load_vocabulary("shapes")
    table = train.prompt_table(vocabulary, 40)
    for concept, rows in zip(vocabulary.concepts, table, strict=True):
        spelled = {bytes(row[(row > 0) & (row <= 256)].astype(np.uint8) - 1).decode() for row in rows}
        assert spelled == {text for texts in vocabulary.prompts(concept) for text in texts}


def test_mirroring_moves_image_and_label_together() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 9, (64, 6, 6), np.int32)
    image = np.stack([label * 3, label * 3 + 1, label * 3 + 2], axis=-1).astype(np.float32)
    moved_image, moved_label = jax.jit(train.mirrored)(jax.random.key(0), image, label)
    np.testing.assert_array_equal(moved_image[..., 1], 3 * moved_label + 1)
    same = (moved_label == label).all(axis=(1, 2))
    mirrored = (moved_label == label[:, :, ::-1]).all(axis=(1, 2))
    np.testing.assert_array_equal(same, ~mirrored)
    assert 0 < same.sum() < 64


def test_nothing_is_written_for_unusable_words(tmp_path: Path) -> None:
    config = ovs_shapes.get_config().unlock()
    config.vocabulary = "voc21"
    with pytest.raises(InputError, match="voc21"):
        train.train_maskclip(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_shipped_weights_say_where_they_come_from() -> None:
    assert SHIPPED.stat().st_size <= 2_000_000
    _, metadata = read_safetensors(SHIPPED)
    assert json.loads(metadata["experiment"]) == ovs_shapes.get_config().to_dict()
    assert metadata["data_sha256"] == data_sha256(load_vocabulary("shapes"))
    assert "semiovs_jax.ovs.train" in metadata["command"]


def test_shipped_weights_label_unseen_scenes() -> None:
    model = make_maskclip(load_clip("shapes_clip"), load_vocabulary("shapes"), image_size=112)
    quality = label_quality(model, held_out_scenes(5, 60), (MAX_SIDE, MAX_SIDE), IGNORE_INDEX)
    assert quality.mean_iou > 0.45  # 0.50 on the 200 scenes of the file's own metadata


def test_shipped_weights_build_by_the_names_of_a_config() -> None:
    config = {"weights": "shapes_clip", "vocabulary": "shapes", "image_size": 112}
    model = build(config, 1 + len(TARGETS))
    found = model.label(model.weights, jnp.zeros((1, 112, 112, 3)), label_size=(50, 40))
    assert found.label.shape == (1, 50, 40)
    assert np.all(np.isfinite(found.confidence))
