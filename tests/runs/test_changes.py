"""What may change between two starts of a run, and how the rest is named."""

import copy

import pytest

from configs import common, demo, voc
from semiovs_jax.runs.changes import MAY_CHANGE, PATHS, Run, changed_keys, refusals
from semiovs_jax.runtime.provenance import config_as_json

CONFIG = config_as_json(demo.get_config())
DIGESTS = {
    "data.dataset": "d" * 64,
    "data.labeled_split": "1" * 64,
    "data.unlabeled_split": "2" * 64,
    "data.val_split": "3" * 64,
    "data.ood_root": "4" * 64,
    "ovs.weights": "5" * 64,
}


def with_values(changes):
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return config


def compare(changes, digests=DIGESTS, old=None, **of_run):
    was = Run(CONFIG if old is None else old, DIGESTS, **of_run)
    return refusals(was, Run(with_values(changes), digests, **of_run))


def test_all_differences_are_named_at_once():
    lines = compare({"method.name": "supervised", "method.ood": "none", "seed": 7, "data.scale_range": [0.5, 1.5]})
    assert sorted(lines) == [
        "config.data.scale_range was [0.8, 1.25], is [0.5, 1.5]",
        "config.method.name was 'unimatch', is 'supervised'",
        "config.method.ood was 'ovs', is 'none'",
        "config.seed was 0, is 7",
    ]


def test_what_changes_no_number_may_change():
    assert compare(dict.fromkeys(MAY_CHANGE, 99)) == []


def test_the_tables_name_keys_of_the_configs():
    keys = set(changed_keys({}, config_as_json(common.semiovs_unimatch())))
    assert keys >= set(PATHS)
    assert keys | {"train.fsdp", "train.max_bad_steps", "train.profile_steps", "train.writers"} >= MAY_CHANGE


@pytest.mark.parametrize(
    ("changes", "known", "lines"),
    [
        ({"train.steps": 1200}, {}, []),
        ({"train.steps": 0, "train.epochs": 20}, {"steps_per_epoch": 62}, []),
        ({"train.steps": 300}, {}, ["config.train.steps was 450, is 300: a run may become longer, not shorter"]),
        (
            {"train.steps": 0, "train.epochs": 2},
            {"steps_per_epoch": 62},
            [
                "config.train.epochs was 80, is 2: a run may become longer, not shorter",
                "config.train.steps was 450, is 0: a run may become longer, not shorter",
            ],
        ),
        ({"train.steps": 0}, {}, ["config.train.steps was 450, is 0: a run may become longer, not shorter"]),
    ],
    ids=["more steps", "epochs, known to be longer", "fewer", "fewer by epochs", "unknown"],
)
def test_a_run_may_become_longer_alone(changes, known, lines):
    assert sorted(compare(changes, **known)) == lines


def test_a_run_of_epochs_may_become_longer_before_their_length_is_known():
    config = with_values({"train.steps": 0})
    assert compare({"train.steps": 0, "train.epochs": 81}, old=config) == []
    assert len(compare({"train.steps": 0, "train.epochs": 79}, old=config)) == 1


def test_paths_may_move_with_the_same_content():
    moved = {"data.root": "/mnt/shapes", "data.ood_root": "/mnt/ood", "ovs.weights": "~/sed.safetensors"}
    assert compare(moved) == []


def test_paths_may_not_move_where_the_content_is_unknown():
    assert compare({"model.weights": "other.safetensors"}) == [
        "config.model.weights was 'shapes_resnet', is 'other.safetensors'",
    ]
    digests = {key: value for key, value in DIGESTS.items() if key != "data.val_split"}
    assert compare({"data.root": "/mnt/shapes"}, digests) == ["config.data.root was 'data/shapes', is '/mnt/shapes'"]


def test_other_content_is_named_wherever_it_is():
    digests = DIGESTS | {"data.labeled_split": "a" * 64, "ovs.weights": "b" * 64}
    assert sorted(compare({"ovs.weights": "/new/sed.safetensors"}, digests)) == [
        "config.data.labeled_split='splits/labeled.txt': its content has changed (sha256 was 11111111, is aaaaaaaa)",
        "config.ovs.weights='/new/sed.safetensors': its content has changed (sha256 was 55555555, is bbbbbbbb)",
    ]
    assert compare({"data.labeled_split": "splits/val.txt"}, DIGESTS | {"data.labeled_split": "3" * 64}) == [
        "config.data.labeled_split was 'splits/labeled.txt', is 'splits/val.txt'"
    ]


def test_names_of_earlier_versions_are_understood():
    now = config_as_json(voc.get_config("92,prevmatch"))
    earlier = copy.deepcopy(now)
    earlier["method"]["bank"] = earlier["method"].pop("snapshots")
    earlier["method"]["dense_clip"] = earlier["method"].pop("maskclip")
    earlier["ovs"]["name"] = now["ovs"]["name"] = "maskclip"
    earlier["ovs"]["name"] = "dense_clip"
    earlier["model"]["remat"] = False
    del earlier["data"]["scaled_decode"], earlier["train"]["profile_steps"]
    assert changed_keys(earlier, now) == {}
    now["method"]["snapshots"]["capacity"] = 4
    assert changed_keys(earlier, now) == {"method.snapshots.capacity": (8, 4)}


def test_a_key_that_only_one_side_has_is_a_difference():
    assert compare({"method.sharpness": 2.0}) == ["config.method.sharpness was not set, is 2.0"]
