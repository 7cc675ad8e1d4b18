import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.file import load_clip
from semiovs_jax.models.sed.file import SED, load_sed
from semiovs_jax.weights.keys import flatten
from tests.ovs.tiny_sed import CONFIG, parts, write_sed


def test_config_survives_json():
    assert SED.read(SED.write(CONFIG)) == CONFIG
    assert json.loads(SED.write(CONFIG))["image_size"] == 64


def test_weights_and_config_are_read_back(tmp_path):
    sed = load_sed(write_sed(tmp_path / "sed.safetensors"))
    assert sed.config == CONFIG
    for name, expected in parts().items():
        found, expected = flatten(getattr(sed, name)), flatten(expected)
        assert found.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_the_two_kinds_are_not_taken_for_each_other(tmp_path):
    path = write_sed(tmp_path / "sed.safetensors")
    with pytest.raises(InputError, match=r"sed\.safetensors: holds weights of kind 'sed', not 'clip'.*--kind=clip"):
        load_clip(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 7}, "embed_dim is 7 in the image tower and 6 in the text tower"),
        ({"widths": (4, 6, 9, 10)}, r"levels of \(8, 6, 4\) channels, the image tower has \(9, 6, 4\)"),
    ],
)
def test_parts_of_different_models_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, visual=dataclasses.replace(CONFIG.visual, **change))
