import dataclasses

import numpy as np
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.weights.keys import flatten
from semiovs_jax.weights.parts import FileKind, config_from_json, config_to_json


@dataclasses.dataclass(frozen=True)
class Tower:
    width: int
    depths: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True)
class Pair:
    tower: Tower
    rates: tuple[float, ...]
    name: str = ""


PAIR = Pair(Tower(3, (2, 1)), (0.5, 1.5), "two")


def read(text):
    return config_from_json(Pair, text)


def shapes(config):
    return {"tower": {"0/kernel": np.empty(config.tower.width)}, "head": {"bias": np.empty(2)}}


FILE = FileKind("pair", read, shapes)
TENSORS = {"tower": {0: {"kernel": np.arange(3, dtype=np.float16)}}, "head": {"bias": np.ones(2, np.float32)}}


def test_nested_configs_and_tuples_survive_json():
    assert read(config_to_json(PAIR)) == PAIR


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"tower": 3}', '{"tower": {"height": 1}, "rates": []}', '{"tower": {}}']
)
def test_other_json_is_refused(text):
    with pytest.raises((KeyError, TypeError, ValueError)):
        read(text)


def test_a_file_is_read_back_in_float32(tmp_path):
    FILE.save(tmp_path / "w", PAIR, TENSORS, {"source": "a test"})
    config, tensors, sha256 = FILE.load(str(tmp_path / "w"))
    assert config == PAIR
    assert len(sha256) == 64
    assert {path: value.tolist() for path, value in flatten(tensors).items()} == {
        "head/bias": [1, 1],
        "tower/0/kernel": [0, 1, 2],
    }
    assert tensors["tower"][0]["kernel"].dtype == np.float32


def test_other_files_are_refused(tmp_path):
    other = dataclasses.replace(FILE, kind="other")
    other.save(tmp_path / "other", PAIR, TENSORS, {})
    with pytest.raises(InputError, match=r"kind 'other', not 'pair'.*--kind=pair"):
        FILE.load(str(tmp_path / "other"))
    FILE.save(tmp_path / "w", dataclasses.replace(PAIR, tower=Tower(4)), TENSORS, {})
    with pytest.raises(InputError, match=r"has shape \(3,\), expected \(4,\)"):
        FILE.load(str(tmp_path / "w"))
