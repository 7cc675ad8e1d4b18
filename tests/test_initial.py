"""What students start with: pretrained backbones, and the names of their classes."""

from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import demo
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from semiovs_jax.benchmarks.claims.rows import ROWS
from semiovs_jax.experiment import make_student
from semiovs_jax.initial import initial_weights
from semiovs_jax.models.clip.file import load_clip
from semiovs_jax.models.clip.vit import resize_positions
from semiovs_jax.ovs.text import embed_text, mean_over_templates
from semiovs_jax.ovs.vocabulary import vocabulary_of_names
from tests.ovs.tiny_clip import write_clip

SHAPES = dataset_info("shapes")


def _config(**changes: Any) -> ConfigDict:
    config = demo.get_config().unlock()
    config.update_from_flattened_dict({**ROWS["SemiVL"].changes, "data.crop_size": 32, **changes})
    return config


def test_semivl_starts_with_clips_tower_and_its_words():
    config = _config()
    params, batch_stats = initial_weights(config, SHAPES, make_student(config, SHAPES))
    clip = load_clip("shapes_clip")
    positions = resize_positions(clip.visual["pos_embed"], (14, 14), (4, 4))
    expected = {**clip.visual, "pos_embed": np.asarray(positions)}
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], expected)
    words = vocabulary_of_names("words", dataset_info("shapes").classes, "{}")
    text = mean_over_templates(embed_text(clip.config.text, clip.text, words))
    np.testing.assert_array_equal(batch_stats["text"], text)
    np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, rtol=1e-6)


def test_random_students_have_words_too():
    config = _config(**{"model.random_init": True})
    _, batch_stats = initial_weights(config, SHAPES, make_student(config, SHAPES))
    np.testing.assert_allclose(np.linalg.norm(batch_stats["text"], axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.weights": "none.safetensors"}, r"config\.model\.weights='none\.safetensors'.*--kind=clip"),
        (
            {"clip.weights": "none.safetensors"},
            r"config\.clip\.weights='none\.safetensors': no such file; fetch a CLIP .* --kind=clip",
        ),
        ({"clip.class_prompt": "a shape"}, r"config\.clip\.class_prompt: template .* exactly one"),
        ({"eval.window": 0}, r"config\.eval\.window=0: config\.model\.backbone='clip_vit_shapes'.* crop's 32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_started_with_is_refused(changes: dict[str, Any], message: str):
    config = _config(**changes)
    with pytest.raises(InputError, match=message):
        initial_weights(config, SHAPES, make_student(config, SHAPES))


def test_words_of_another_clip_are_refused(tmp_path):
    config = _config(**{"clip.weights": write_clip(tmp_path / "clip.safetensors")})
    with pytest.raises(InputError, match=r"embeds text in 6 channels, .*'clip_vit_shapes' images in 64"):
        initial_weights(config, SHAPES, make_student(config, SHAPES))
