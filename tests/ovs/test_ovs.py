"""An OVS is found by the name of its module."""

import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from data_pipelines.errors import InputError
from semiovs_jax import ovs
from semiovs_jax.ovs import train
from semiovs_jax.ovs.options import at_least, check_choices, multiples_of

PAGE = Path(__file__).parents[2] / "docs" / "labels.md"


def test_names_are_the_modules_that_build():
    assert ovs.ovs_names() == ["maskclip", "sed"]


def test_the_documentation_lists_every_name():
    (row,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `name` | "))
    assert all(f"`{name}`" in row for name in ovs.ovs_names())


def test_an_ovs_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text("def build(config, num_classes):\n    return config['weights'], num_classes\n")
    (tmp_path / "toy_helpers.py").write_text("def rebuild():\n    pass\n")
    monkeypatch.setattr(ovs, "__path__", [*ovs.__path__, str(tmp_path)])
    assert ovs.ovs_names() == ["maskclip", "sed", "toy"]
    assert ovs.build_ovs({"name": "toy", "weights": "w"}, 3) == ("w", 3)
    sys.modules.pop("semiovs_jax.ovs.toy")


@pytest.mark.parametrize("name", ["text", "labeling", "lseg", "sed.file", ""])
def test_other_modules_are_no_ovs(name):
    with pytest.raises(InputError, match=r"config\.ovs\.name is .*; choose one of 'maskclip', 'sed'"):
        ovs.build_ovs({"name": name}, 3)


def test_looking_for_names_imports_no_model():
    code = "import sys, semiovs_jax.ovs as o; o.ovs_names(); print({'jax', 'semiovs_jax.ovs.sed'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"


def test_the_former_kind_of_training_is_accepted_with_a_warning(monkeypatch, caplog, tmp_path):
    monkeypatch.setitem(train.KINDS, "maskclip", lambda config, workdir: workdir)
    assert train.train(ml_collections.ConfigDict({"kind": "dense_clip"}), tmp_path) == tmp_path
    assert "Write config.kind=maskclip" in caplog.text


def test_one_error_names_every_invalid_key():
    tables = {"dtype": {"b": 1, "a": 2}, "side": multiples_of(32), "count": at_least(0), "layers": ("", "x")}
    valid = {"dtype": "a", "side": 64, "count": 0, "layers": "", "unchecked": None}
    check_choices("config.toy", valid, tables)
    with pytest.raises(InputError) as error:
        check_choices("config.toy", valid | {"dtype": "c", "side": 0, "count": -1, "layers": "y"}, tables)
    assert str(error.value).splitlines() == [
        "config.toy.dtype is 'c'; choose one of 'a', 'b'",
        "config.toy.side is 0; choose a multiple of 32",
        "config.toy.count is -1; choose 0 or more",
        "config.toy.layers is 'y'; choose one of '', 'x'",
    ]
