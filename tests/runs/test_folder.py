"""A workdir at the start of a run: to whom it belongs, whether it is finished, and what it records."""

import json
import logging
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from data_pipelines.labels.verify import Verified
from semiovs_jax.runs.folder import RunFolder, open_run
from tests.experiment import shrunk_demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("experiment")


def save(workdir: Path, step: int, config=None, **meta) -> None:
    """What `RunFolder` sees of a checkpoint."""
    item = workdir / "checkpoints" / str(step) / "meta"
    item.mkdir(parents=True)
    (item.parent / "state").mkdir()
    content = meta if config is None else {"config": json.loads(json.dumps(config.to_dict())), **meta}
    (item / "metadata").write_text(json.dumps(content))


def begun(config, workdir: Path, steps_per_epoch: int = 6):
    """A run that has begun and saved a checkpoint."""
    record = RunFolder(workdir, config).begin(0, steps_per_epoch)
    save(workdir, 2, config)
    return record


def test_the_config_and_its_origin_are_readable(folder, tmp_path):
    config = shrunk_demo(folder)
    record = begun(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["scale_range"] == [0.5, 2.0]
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["steps"] == 4
    assert content["forked_from"] is None
    assert {"data.labeled_split", "data.val_split", "data.ood_root", "ovs.weights"} <= content["digests"].keys()
    assert "model.weights" not in content["digests"], "the backbone starts from random weights"
    facts = record.facts()
    assert facts["devices"]["kind"] == "cpu"
    assert len(facts["config_sha256"]) == 64
    assert {"jax", "orbax-checkpoint"} <= facts["versions"].keys()
    assert facts["earlier_starts"] == []


def test_another_config_is_refused_with_every_key(folder, tmp_path):
    begun(shrunk_demo(folder), tmp_path)
    other = shrunk_demo(folder, **{"method.name": "supervised", "method.ood": "none", "train.log_every_steps": 7})
    with pytest.raises(InputError) as error:
        open_run(other, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: holds a run of another config or of other data:\n"
        "  config.method.name was 'unimatch', is 'supervised'\n"
        "  config.method.ood was 'ovs', is 'none'\n"
        f"use another --workdir; to continue that run there under this config, add --fork_from={tmp_path}"
    )


def test_an_edited_split_list_is_refused(folder, tmp_path):
    config = shrunk_demo(folder)
    begun(config, tmp_path)
    path = Path(config.data.root) / "splits" / "labeled.txt"
    listed = path.read_text()
    try:
        path.write_text("".join(listed.splitlines(keepends=True)[1:]))
        with pytest.raises(InputError, match=r"data\.labeled_split='splits/labeled\.txt': its content has changed"):
            RunFolder(tmp_path, config)
    finally:
        path.write_text(listed)
    RunFolder(tmp_path, config)


def test_another_ood_image_is_refused_before_it_is_labeled(folder, tmp_path):
    config = shrunk_demo(folder)
    begun(config, tmp_path)
    images = Path(config.data.ood_root)
    added = images / "zzz.jpg"
    try:
        added.write_bytes(next(images.glob("*.jpg")).read_bytes())
        with pytest.raises(InputError, match=r"config\.data\.ood_root=.*its content has changed"):
            RunFolder(tmp_path, config)
    finally:
        added.unlink()


@pytest.mark.parametrize("change", [{"fingerprint": "b" * 64}, {"images_sha256": "c" * 64}])
def test_labels_made_again_otherwise_are_refused_when_training_begins(folder, tmp_path, change):
    labels = tmp_path / "labels"
    labels.mkdir()
    config = shrunk_demo(folder, **{"ovs.labels_dir": str(labels)})
    manifest = {"fingerprint": "a" * 64, "images_sha256": "a" * 64, "finished": False}
    (labels / "manifest.json").write_text(json.dumps(manifest))
    begun(config, tmp_path / "run")
    opened = RunFolder(tmp_path / "run", config)
    (labels / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=r"labels_dir=.*\(sha256 was \w{8}, is \w{8}\)"):
        opened.begin(2, 6)


def test_replaced_images_are_refused_before_they_are_labeled_again(folder, tmp_path):
    config, changed = shrunk_demo(folder), Verified((), ("a/1", "a/2"), {}, {}, 8, "", "")
    RunFolder(tmp_path, config).refuse_changed_images(changed)  # the workdir holds no run: the labels are made again
    begun(config, tmp_path)
    opened = RunFolder(tmp_path, config)
    opened.refuse_changed_images(changed._replace(changed=(), damaged={"a/1": "truncated"}))
    opened.refuse_changed_images(None)
    with pytest.raises(InputError, match=r"of other OOD images: 2 are not .*\(a/1.* a/2\); put them back, or"):
        opened.refuse_changed_images(changed)


def test_a_folder_without_a_checkpoint_belongs_to_nobody(folder, tmp_path):
    RunFolder(tmp_path, shrunk_demo(folder)).begin(0, 6)
    record = RunFolder(tmp_path, shrunk_demo(folder, seed=3)).begin(0, 6)
    assert record.run.config["seed"] == 3
    assert len(record.starts) == 1


def test_starts_are_recorded_where_something_changed(folder, tmp_path, caplog):
    first = begun(shrunk_demo(folder), tmp_path)
    RunFolder(tmp_path, shrunk_demo(folder)).begin(2, 6)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        record = RunFolder(tmp_path, shrunk_demo(folder, **{"train.steps": 9})).begin(2, 6)
    assert "from step 2 on, the learning rate" in caplog.text
    assert [start["after_step"] for start in record.starts] == [0, 2]
    assert record.starts[1]["changed"] == {"train.steps": [4, 9]}
    facts = record.facts()
    assert facts["config_sha256"] != first.facts()["config_sha256"] == facts["earlier_starts"][0]["config_sha256"]


def test_a_run_of_an_earlier_version_is_compared_with_its_newest_checkpoint(folder, tmp_path):
    save(tmp_path, 2, shrunk_demo(folder))
    save(tmp_path, 4, None)  # damaged: without a config
    RunFolder(tmp_path, shrunk_demo(folder))
    with pytest.raises(InputError, match=r"config\.seed was 0, is 7"):
        RunFolder(tmp_path, shrunk_demo(folder, seed=7))
    with pytest.raises(InputError, match=r"config\.data\.root was .*, is 'elsewhere'"):
        RunFolder(tmp_path, shrunk_demo(folder, **{"data.root": "elsewhere"}))


def test_a_finished_run_is_told_from_one_that_becomes_longer(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "semiovs_jax")
    by_epochs = {"train.steps": 0, "train.epochs": 2}
    begun(shrunk_demo(folder, **by_epochs), tmp_path)
    assert not RunFolder(tmp_path, shrunk_demo(folder, **by_epochs)).finished
    (tmp_path / "result.json").write_text(json.dumps({"steps": 12}))
    (tmp_path / "table.txt").write_text("the table\n")
    opened = RunFolder(tmp_path, shrunk_demo(folder, **by_epochs))
    assert opened.finished
    opened.log_finished()
    assert caplog.messages[0] == "the table"
    assert f"finished: nothing to do; the result is in {tmp_path / 'result.json'}" in caplog.text
    assert not RunFolder(tmp_path, shrunk_demo(folder, **by_epochs | {"train.epochs": 3})).finished
    assert not RunFolder(tmp_path, shrunk_demo(folder, **{"train.steps": 13})).finished
    assert RunFolder(tmp_path, shrunk_demo(folder, **{"train.steps": 12})).finished


def test_a_finished_run_of_an_earlier_version_is_left_alone(folder, tmp_path):
    by_epochs = shrunk_demo(folder, **{"train.steps": 0, "train.epochs": 2})
    save(tmp_path, 12, by_epochs)
    (tmp_path / "result.json").write_text(json.dumps({"steps": 12}))
    assert RunFolder(tmp_path, by_epochs).finished


def test_a_finished_run_needs_no_data_any_more(folder, tmp_path):
    config = shrunk_demo(folder, **{"ovs.weights": str(tmp_path / "clip.safetensors")})
    (tmp_path / "clip.safetensors").write_bytes((folder / "clip.safetensors").read_bytes())
    begun(config, tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"steps": 4}))
    (tmp_path / "clip.safetensors").unlink()
    assert RunFolder(tmp_path, config).finished


def test_a_fork_continues_another_run_under_another_config(folder, tmp_path):
    source, fork = tmp_path / "source", tmp_path / "fork"
    begun(shrunk_demo(folder), source)
    config = shrunk_demo(folder, **{"optim.learning_rate": 1e-4})
    fork.mkdir()
    opened = RunFolder(fork, config, source)
    assert opened.fork_from == source
    record = opened.begin(2, 6)
    assert record.facts()["forked_from"]["checkpoint"] == str(source / "checkpoints" / "2")
    save(fork, 3, config)
    for from_ in (None, source, source / "checkpoints" / "2"):
        assert RunFolder(fork, config, from_).fork_from is None, "it has a checkpoint of its own by now"
    with pytest.raises(InputError, match=r"holds a run that was forked from .*source/checkpoints/2; use another"):
        RunFolder(fork, config, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds a run that was not forked; use another --workdir"):
        RunFolder(source, shrunk_demo(folder), fork)


def test_forks_of_nothing_and_to_nothing_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"--fork_from=.*none: no checkpoint in .*none/checkpoints"):
        RunFolder(tmp_path / "run", shrunk_demo(folder), tmp_path / "none")
    source = tmp_path / "source"
    begun(shrunk_demo(folder), source)
    with pytest.raises(InputError, match=r"its checkpoint is after step 2, and the run is 2 steps long"):
        RunFolder(tmp_path / "run", shrunk_demo(folder, **{"train.steps": 2}), source).begin(2, 6)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_record_is_named(folder, tmp_path, content):
    begun(shrunk_demo(folder), tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: .*; remove the file"):
        RunFolder(tmp_path, shrunk_demo(folder))
