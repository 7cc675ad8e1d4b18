"""Every number of a config has one range, and every command reads the table at its start."""

import math
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from configs import common, ovs_coco_stuff, ovs_sed_shapes, ovs_shapes
from data_pipelines.errors import InputError
from semiovs_jax import config_ranges
from semiovs_jax.config_checks import inspect
from semiovs_jax.config_ranges import range_faults
from semiovs_jax.evaluated import open_evaluation
from semiovs_jax.experiment import abstract_inputs
from semiovs_jax.ood_labels import label_ood_images
from semiovs_jax.ovs import train as ovs_train
from semiovs_jax.runtime.sharding import make_mesh
from semiovs_jax.train import train_and_evaluate
from tests.experiment import shrunk_demo

LEAST = {
    "seed": 0,
    "batch_size": 1,
    "data.crop_size": 1,
    "data.scale_short_side": 0,
    "data.max_bad_records": 0,
    "data.num_workers": 0,
    "data.num_threads": 0,
    "data.prefetch": 0,
    "method.snapshots.capacity": 1,
    "method.snapshots.draws": 1,
    "ovs.image_size": 0,
    "ovs.class_chunk": 0,
    "ovs.top_k": 0,
    "ovs.batch_size": 1,
    "train.epochs": 0,
    "train.steps": 0,
    "train.log_every_steps": 1,
    "train.eval_every_steps": 0,
    "train.checkpoint_every_steps": 0,
    "train.max_bad_steps": 0,
    "train.fsdp": 1,
    "train.panel_images": 0,
    "eval.batch_size": 1,
    "eval.max_shapes": 1,
    "eval.short_side": 0,
    "eval.window": 0,
    "eval.stride": 1,
}
NOT_NEGATIVE = ([0.0, 2.5], [-0.1], "a finite number, 0 or more")
SHARE = ([0.0, 0.5, 1.0], [-0.1, 1.5], "0 to 1")
# Accepted values, refused ones, and what the message expects.
FLOATS: dict[str, tuple[list[float], list[float], str]] = {
    "data.ood_min_foreground": SHARE,
    "data.ood_repeat_threshold": SHARE,
    "data.stall_seconds": NOT_NEGATIVE,
    "method.ood_weight": NOT_NEGATIVE,
    "method.confidence_threshold": SHARE,
    "method.ovs_threshold": SHARE,
    "method.snapshots.confidence_threshold": SHARE,
    "method.maskclip.weight": NOT_NEGATIVE,
    "method.maskclip.confidence_threshold": SHARE,
    "optim.learning_rate": ([1e-9, 2.5], [0.0, -0.1], "a finite number, more than 0"),
    "optim.backbone_multiplier": NOT_NEGATIVE,
    "optim.head_multiplier": NOT_NEGATIVE,
    "optim.momentum": ([0.0, 0.99], [-0.1, 1.0], "0 or more, and less than 1"),
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.power": NOT_NEGATIVE,
}
TUPLES = ("data.scale_range", "train.profile_steps", "eval.scales")


def _faults(key: str, value: Any) -> list[str]:
    config = common.semiovs_unimatch()
    config.update_from_flattened_dict({key: value})
    return range_faults(config)


def _numeric_keys(section: ConfigDict, prefix: str = "") -> set[str]:
    keys = set()
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            keys |= _numeric_keys(value, f"{prefix}{key}.")
        elif isinstance(value, numbers.Number | tuple) and not isinstance(value, bool):
            keys.add(f"{prefix}{key}")
    return keys


def test_every_number_of_the_common_config_has_a_range_and_is_tested():
    keys = _numeric_keys(common.semiovs_unimatch())
    assert len(keys) == 45
    assert keys == set(config_ranges._TABLE) == {*LEAST, *FLOATS, *TUPLES}


@pytest.mark.parametrize("key", LEAST)
def test_integers_have_a_least_value(key: str):
    least = LEAST[key]
    assert _faults(key, least) == []
    bounds = "0 to 4294967295" if key == "seed" else f"{least} or more"
    assert _faults(key, least - 1) == [f"config.{key}={least - 1}: set it to {bounds}"]


@pytest.mark.parametrize("key", FLOATS)
def test_floats_are_finite_and_in_their_range(key: str):
    accepted, refused, bounds = FLOATS[key]
    assert all(_faults(key, value) == [] for value in accepted)
    for value in (*refused, math.nan, math.inf, -math.inf):
        assert _faults(key, value) == [f"config.{key}={value}: set it to {bounds}"]


def test_equal_seeds_of_jax_are_refused():
    same = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (0, 2**32)]
    assert same[0] == same[1]
    assert _faults("seed", 2**32 - 1) == []
    assert len(_faults("seed", 2**32)) == 1


@pytest.mark.parametrize("value", [(2.0, 0.5), (0.0, 1.0), (-1.0, 1.0), (0.5, math.inf), (math.nan, 1.0)])
def test_the_range_of_scales_ascends(value: tuple[float, float]):
    assert _faults("data.scale_range", (1.0, 1.0)) == []
    expected = f"config.data.scale_range={value}: set it to two positive factors, ascending"
    assert _faults("data.scale_range", value) == [expected]


@pytest.mark.parametrize("value", [(0, 3), (3, 2), (-1, 2), (5, 0)])
def test_the_steps_that_are_traced_count_from_1(value: tuple[int, int]):
    assert [_faults("train.profile_steps", steps) for steps in ((), (0, 0), (1, 1), (10, 15))] == [[]] * 4
    expected = "the first and the last step to trace, counted from 1, or (0, 0) for none"
    assert _faults("train.profile_steps", value) == [f"config.train.profile_steps={value}: set it to {expected}"]


@pytest.mark.parametrize("value", [(), (1.0, 0.0), (-1.0,), (math.inf,), (math.nan, 1.0)])
def test_the_scales_of_evaluation_are_positive(value: tuple[float, ...]):
    assert [_faults("eval.scales", scales) for scales in ((1,), (0.75, 1.0, 1.25))] == [[]] * 2
    expected = f"config.eval.scales={value}: set it to positive factors, such as 0.75,1,1.25"
    assert _faults("eval.scales", value) == [expected]


def test_values_of_another_type_are_refused_at_once_before_anything_else():
    config = common.semiovs_unimatch().to_dict()
    config.update(batch_size=8.0, seed=-1)
    config["data"].update(crop_size=True, scale_range=(0.5,), num_threads="8")
    config["optim"]["learning_rate"] = None
    with pytest.raises(InputError) as caught:
        range_faults(ConfigDict(config))
    assert sorted(caught.value.args) == [
        "config.batch_size=8.0: expected an integer; set it to 1 or more",
        "config.data.crop_size=True: expected an integer; set it to 1 or more",
        "config.data.num_threads='8': expected an integer; set it to 0 or more",
        "config.data.scale_range=(0.5,): expected two numbers; set it to two positive factors, ascending",
        "config.optim.learning_rate=None: expected a number; set it to a finite number, more than 0",
    ]


def test_keys_of_a_method_of_your_own_are_finite_and_its_thresholds_are_shares():
    config = common.semiovs_unimatch()
    config.method.mine = ConfigDict({"threshold": 2.0, "decay": math.nan, "least_threshold": 0.5, "name": "x"})
    assert range_faults(config) == [
        "config.method.mine.decay=nan: set it to a finite number",
        "config.method.mine.threshold=2.0: set it to 0 to 1",
    ]


WRONG = {"data.num_threads": -1, "ovs.batch_size": 0, "eval.max_shapes": 0}


@pytest.mark.parametrize(
    "start",
    [
        lambda config, folder: train_and_evaluate(config, folder / "run"),
        lambda config, folder: inspect(config).usable(),  # check_data
        lambda config, folder: label_ood_images(config, make_mesh(jax.devices()[:1])),
        lambda config, folder: open_evaluation(config, make_mesh(jax.devices()[:1])),
        lambda config, folder: abstract_inputs(config, make_mesh(jax.devices()[:1])),
    ],
    ids=["main", "check_data", "label", "evaluate", "compile"],
)
def test_every_command_reads_the_table(start: Callable[[ConfigDict, Path], Any], tmp_path: Path):
    # Eight devices do not divide the batch of two.
    config = shrunk_demo(tmp_path, **{**WRONG, "batch_size": 8})
    with pytest.raises(InputError) as caught:
        start(config, tmp_path)
    assert sorted(caught.value.args) == [
        "config.data.num_threads=-1: set it to 0 or more",
        "config.eval.max_shapes=0: set it to 1 or more",
        "config.ovs.batch_size=0: set it to 1 or more",
    ]
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("module", [ovs_coco_stuff, ovs_sed_shapes, ovs_shapes])
def test_training_an_ovs_reads_it_too(module: Any, tmp_path: Path):
    config = module.get_config()
    assert range_faults(config) == []
    config.train.log_every_steps = 0
    with pytest.raises(InputError, match=r"^config\.train\.log_every_steps=0: set it to 1 or more$"):
        ovs_train.train(config, tmp_path)
