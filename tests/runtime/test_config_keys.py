from pathlib import Path

import ml_collections
import pytest

from configs import common, demo
from semiovs_jax.runtime.config_files import config_folder
from semiovs_jax.runtime.config_keys import Key, flat, read_keys, unknown_keys


def test_every_key_of_the_common_config_is_read_with_its_value():
    read = {name: key.value for name, key in read_keys(Path(common.__file__)).items() if not key.is_section}
    assert read == dict(flat(common.semiovs_unimatch()))


def test_comments_are_those_at_the_end_of_the_line():
    keys = read_keys(Path(common.__file__))
    assert keys["batch_size"] == Key(8, False, "images per stream and step")
    assert keys["data.crop_size"] == Key(321, False, "")
    assert keys["method.maskclip"] == Key(None, True, "SemiVL's labels of a frozen CLIP")


def test_sections_that_are_written_as_dictionaries_are_read():
    keys = read_keys(config_folder() / "ovs_sed_shapes.py")
    assert keys["model.visual.widths"].value == (16, 32, 64, 128)
    assert keys["model.visual"].is_section


def test_a_value_that_is_no_literal_is_left_open(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("config.seed = random()  # drawn '#1'\nconfig.seed = 3\n")
    assert read_keys(file) == {"seed": Key(None, False, "drawn '#1'")}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.optim.lr=0.1",
            "--config.optim.lr: no such key (did you mean learning_rate?); config.optim has ",
        ),
        ("--config.train.stpes=3", "--config.train.stpes: no such key (did you mean steps?); config.train has check"),
        (
            "-config.crop_size",
            "--config.crop_size: no such key (did you mean config.data.crop_size?); config has ",
        ),
        ("--config.seed.x=1", "--config.seed.x: config.seed is a value, 0, and has no keys; set config.seed itself"),
        ("--noconfig.a.b", "--config.a.b: no such key; config has batch_size, clip, data, eval, method, model, optim"),
    ],
)
def test_an_unknown_key_is_told_with_those_that_there_are(flag: str, message: str):
    (fault,) = unknown_keys(["main.py", "--config=a.py", "--config.seed=3", flag], demo.get_config())
    assert fault.startswith(message)


def test_known_keys_and_items_of_tuples_are_no_fault():
    config = ml_collections.ConfigDict({"a": (1, 2), "b": {"c": True}})
    assert unknown_keys(["main.py", "--config.a[0]=3", "--config.b.c=False", "--noconfig.b.c", "--x=1"], config) == []
