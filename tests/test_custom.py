"""A user's own task from files alone: configs/custom.py on a small tree, through all three of its commands."""

import json
from types import SimpleNamespace

import jax
import pytest

from configs import custom
from semiovs_jax import check_data, evaluate, train
from semiovs_jax.runtime import sharding
from semiovs_jax.runtime.sharding import make_mesh
from tests.custom_tree import CLASSES, write_custom
from tests.ovs.tiny_clip import write_clip


def shrunk_custom():
    """The config on the tree where it looks for it, with a light OVS as its docstring tells, and two steps."""
    config = custom.get_config().unlock()
    config.update_from_flattened_dict(
        {
            "batch_size": 2,
            "data.crop_size": 33,
            "data.num_threads": 2,
            "model.backbone": "resnet_tiny",
            "model.random_init": True,
            "ovs.name": "maskclip",
            "ovs.weights": "weights/clip.safetensors",
            "ovs.templates": "",
            "ovs.image_size": 32,
            "ovs.batch_size": 4,
            "train.steps": 2,
            "train.log_every_steps": 1,
            "train.panel_images": 0,
            "eval.batch_size": 2,
            "eval.max_shapes": 1,
        }
    )
    return config.lock()


@pytest.mark.long
@pytest.mark.slow
def test_a_task_of_ones_own_is_checked_trained_and_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in (train, sharding):  # `evaluate` imports it when it runs
        monkeypatch.setattr(module, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    root = write_custom(tmp_path / "data" / "custom")
    (tmp_path / "weights").mkdir()
    write_clip(tmp_path / "weights" / "clip.safetensors")
    config = shrunk_custom()
    flags = SimpleNamespace(config=config, workdir=str(tmp_path / "run"), json="", which="latest", out=None)

    check_data.main(flags)
    assert capsys.readouterr().out.splitlines()[-1] == "usable"

    train.train_and_evaluate(config, flags.workdir)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["last"]["step"] == 2
    assert tuple(result["last"]["iou"]) == CLASSES
    assert json.loads((root / "ovs_labels" / "manifest.json").read_text())["finished"]

    evaluate.main(flags)
    table = capsys.readouterr().out
    assert "blob" in table
    assert table.splitlines()[0].split() == ["IoU,", "%", "best,", "step", "2"]
    check_data.main(flags)
    assert "cached OVS labels: 5 labeled, 0 bad, 0 missing" in capsys.readouterr().out
