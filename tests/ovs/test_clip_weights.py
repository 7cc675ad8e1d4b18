import dataclasses

import numpy as np
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.convert.keys import flatten
from semiovs_jax.convert.weights import load_weights, save_weights
from semiovs_jax.ovs.clip_weights import ClipConfig, load_clip
from tests.ovs.tiny_clip import CONFIG, towers, write_clip


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


def test_half_precision_is_widened(tmp_path):
    path = tmp_path / "clip.safetensors"
    tensors, metadata = load_weights(write_clip(path))
    save_weights(path, {key: value.astype(np.float16) for key, value in tensors.items()}, metadata)
    assert {value.dtype for value in flatten(load_clip(str(path)).visual).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "resnet"}, "kind 'resnet', not of a CLIP"),
        ({"config": "{}"}, "no CLIP architecture"),
        ({"config": '{"visual": {"depth": 3}, "text": {}}'}, "no CLIP architecture"),
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
