import dataclasses

import numpy as np
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.convnext import ClipConvNextConfig
from semiovs_jax.models.clip.file import ClipConfig, load_clip, parameter_shapes
from semiovs_jax.ovs.maskclip import make_maskclip
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.weights.files import load_weights, save_weights
from semiovs_jax.weights.keys import flatten
from tests.ovs.tiny_clip import CONFIG, towers, write_clip, write_vocabulary


def test_config_survives_json():
    config = dataclasses.replace(CONFIG, normalization="imagenet", logit_scale=14.5)
    assert ClipConfig.from_json(config.to_json()) == config


def test_weights_and_config_are_read_back(tmp_path):
    clip = load_clip(write_clip(tmp_path / "clip.safetensors"))
    assert clip.config == CONFIG
    for found, expected in ((clip.visual, towers()["visual"]), (clip.text, towers()["text"])):
        found, expected = flatten(found), flatten(expected)
        assert found.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_a_convnext_is_read_back_as_one(tmp_path):
    config = dataclasses.replace(
        CONFIG, visual=ClipConvNextConfig(widths=(4, 6), depths=(1, 2), embed_dim=6, head_width=5)
    )
    clip = load_clip(write_clip(tmp_path / "clip.safetensors", config=config))
    assert clip.config == config
    assert flatten(clip.visual).keys() == parameter_shapes(config)["visual"].keys()
    with pytest.raises(InputError, match=r"config\.ovs\.weights is a CLIP with a ConvNeXt"):
        make_maskclip(clip, load_vocabulary(write_vocabulary(tmp_path / "words.json")), image_size=32)


def test_towers_of_different_models_are_refused():
    with pytest.raises(InputError, match="embed_dim is 7 in the image tower and 6 in the text tower"):
        dataclasses.replace(CONFIG, visual=dataclasses.replace(CONFIG.visual, embed_dim=7))


def test_half_precision_is_widened(tmp_path):
    path = tmp_path / "clip.safetensors"
    tensors, metadata = load_weights(write_clip(path))
    save_weights(path, {key: value.astype(np.float16) for key, value in tensors.items()}, metadata)
    assert {value.dtype for value in flatten(load_clip(str(path)).visual).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "resnet"}, "kind 'resnet', not 'clip'"),
        ({"config": "{}"}, "no architecture of kind 'clip'"),
        ({"config": "[]"}, "no architecture of kind 'clip'"),
        ({"config": '{"visual": {"depth": 3}, "text": {}}'}, "no architecture of kind 'clip'"),
        ({"config": CONFIG.to_json().replace('"embed_dim": 6', '"embed_dim": 7')}, "wrong shapes"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path, change, message):
    path = tmp_path / "clip.safetensors"
    tensors, metadata = load_weights(write_clip(path))
    save_weights(path, tensors, {**metadata, **change})
    with pytest.raises(InputError, match=rf"(?s)clip\.safetensors.*{message}"):
        load_clip(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors"):
        load_clip(str(tmp_path / "nothing.safetensors"))
