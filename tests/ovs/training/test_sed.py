"""SED's training, shrunk: on scenes and on files, from random weights and from a CLIP's, stopped and gone on."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import ovs_coco_stuff, ovs_sed_shapes
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.shapes.drawing import IGNORE_INDEX
from data_pipelines.shapes.outlines import TARGETS
from data_pipelines.signals import Stopped
from semiovs_jax.models.clip.file import CLIP, ClipConfig
from semiovs_jax.models.sed.file import load_sed
from semiovs_jax.ovs import build_ovs, train
from semiovs_jax.ovs.training import sed as train_sed
from semiovs_jax.ovs.training.quality import label_quality
from semiovs_jax.ovs.training.scenes import MAX_SIDE, data_sha256, held_out_scenes
from semiovs_jax.ovs.training.sed_init import initial_sed
from semiovs_jax.ovs.training.task import Task, make_task, one_class_per_concept
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.sharding import make_mesh
from semiovs_jax.weights.files import read_safetensors
from semiovs_jax.weights.keys import flatten
from semiovs_jax.weights.parts import weights_path
from tests.data_pipelines.tree import write_tree
from tests.ovs import tiny_clip, tiny_sed

SHIPPED = weights_path("shapes_sed")


@pytest.fixture(scope="module", autouse=True)
def two_devices() -> Iterator[None]:
    """Sharded, but cheaper to compile for than eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_sed, "make_mesh", lambda: make_mesh(jax.devices()[:2]))
        yield


@pytest.fixture(scope="module")
def tiny() -> ml_collections.ConfigDict:
    """The shapes' config, shrunk to four steps of few small images."""
    config = ovs_sed_shapes.get_config().unlock()
    config.data.update(images=6, held_out=2)
    config.model.update(image_size=64, embed_dim=6)
    config.model.visual.update(widths=(4, 4, 6, 6), depths=(1, 0, 1, 0))
    config.model.text.update(width=8)
    config.model.aggregator.update(width=4, decoder_widths=(4, 4, 4), guidance_widths=(2, 2, 2), kernel_sizes=(3, 3, 3))
    config.train.update(batch_size=4, aggregator_stride=2, steps=4, log_every_steps=2, checkpoint_every_steps=2)
    return config.lock()


@pytest.fixture(scope="module")
def whole_run(tiny: ml_collections.ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = train.train(tiny, tmp_path_factory.mktemp("whole"))
    return path


@pytest.mark.slow
def test_a_run_writes_weights_that_label(whole_run: Path, tiny: ml_collections.ConfigDict) -> None:
    tensors, metadata = read_safetensors(whole_run)
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
    assert json.loads(metadata["experiment"]) == json.loads(json.dumps(tiny.to_dict()))
    assert set(json.loads(metadata["held_out_iou"])) == {"background", *TARGETS}
    assert metadata["data_sha256"] == data_sha256(load_vocabulary("shapes"))
    model = build_ovs({"name": "sed", "weights": str(whole_run), "vocabulary": "shapes"}, 1 + len(TARGETS))
    found = model.label(model.weights, jnp.zeros((1, 64, 64, 3)), label_size=(50, 40))
    assert found.label.shape == (1, 50, 40)
    assert np.all(np.isfinite(found.confidence))


@pytest.mark.slow
def test_every_part_was_trained(whole_run: Path, tiny: ml_collections.ConfigDict) -> None:
    start, end = initial_sed(tiny, 4), load_sed(str(whole_run))
    for part in ("visual", "text", "aggregator"):
        before, after = flatten(getattr(start, part)), flatten(getattr(end, part))
        still = [path for path, value in after.items() if np.array_equal(value, before[path].astype(np.float16))]
        assert not [path for path in still if path.endswith("kernel") or "/conv" in path]


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_in_the_same_weights(
    whole_run: Path, tiny: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", lambda self, step: step == 3)
        with pytest.raises(Stopped, match="143"):
            train.train(tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    resumed = train.train(tiny, tmp_path)
    assert read_safetensors(resumed)[1] == read_safetensors(whole_run)[1]  # the tensors' digest among it


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ml_collections.ConfigDict:
    """The config for COCO-Stuff, on a small tree of VOC's layout and a CLIP with a tiny ConvNeXt."""
    folder = tmp_path_factory.mktemp("files")
    data = write_tree(folder, labeled=6, val=3)
    names = dataset_info("voc21").classes
    words = {name: [f"{name} {i}" for i in range(2 if name == "background" else 1)] for name in names}
    clip = ClipConfig(dataclasses.replace(tiny_sed.CONFIG.visual, widths=(4, 4, 6, 6)), tiny_sed.CONFIG.text)
    CLIP.save(folder / "clip.safetensors", clip, tiny_clip.towers(config=clip), {"source": "a test"})
    config = ovs_coco_stuff.get_config().unlock()
    config.vocabulary = tiny_clip.write_vocabulary(folder / "words.json", words)
    config.templates = ""
    config.init = str(folder / "clip.safetensors")
    config.data.update(data, crop_size=64, held_out=2)
    config.model.update(image_size=64, short_side=40)
    config.model.aggregator.update(
        width=4, decoder_widths=(4, 4, 4), guidance_widths=(2, 2, 2), num_heads=2, kernel_sizes=(3, 3, 3)
    )
    config.train.update(batch_size=2, steps=2, log_every_steps=1, checkpoint_every_steps=2)
    return config.lock()


@pytest.mark.slow
def test_a_head_is_trained_on_a_dataset_of_files(files: ml_collections.ConfigDict, tmp_path: Path) -> None:
    path = train.train(files, tmp_path)
    assert path == tmp_path / "sed_b_coco_stuff.safetensors"
    sed, start = load_sed(str(path)), initial_sed(files, 1)
    assert (sed.config.image_size, sed.config.short_side, sed.config.normalization) == (64, 40, "clip")
    jax.tree.map(np.testing.assert_array_equal, sed.text, start.text)  # frozen
    moved = {
        part: max(
            float(np.abs(value - flatten(getattr(start, part))[path]).max())
            for path, value in flatten(getattr(sed, part)).items()
        )
        for part in ("visual", "aggregator")
    }
    rate = files.optim.learning_rate
    assert 0 < moved["visual"] < 0.02 * rate < 0.5 * rate < moved["aggregator"] < 3 * rate
    assert 0 <= float(read_safetensors(path)[1]["held_out_miou"]) <= 1


def test_what_is_frozen_is_no_part_of_the_state(files: ml_collections.ConfigDict) -> None:
    config = files.copy_and_resolve_references().unlock()
    config.optim.visual_multiplier = 0.0
    task = make_task(config)
    state, _ = train_sed.make_train_step(config, initial_sed(config, 1), task, make_mesh(jax.devices()[:1]))
    assert set(state.params) == {"aggregator"}
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 2 * size + 10


def test_files_come_as_crops_of_the_image_size(files: ml_collections.ConfigDict) -> None:
    task = make_task(files)
    batch = next(task.batches)["labeled"]
    assert batch["image"].shape == (2, 64, 64, 3)
    assert task.vocabulary.classes == dataset_info("voc21").classes
    assert np.all(batch["label"][~batch["valid"]] == task.ignore_index)


def test_scenes_are_labeled_by_concept(tiny: ml_collections.ConfigDict) -> None:
    task = make_task(tiny)
    assert isinstance(task, Task)
    assert task.vocabulary == one_class_per_concept(load_vocabulary("shapes"))
    assert task.vocabulary.class_of_concept == tuple(range(len(task.vocabulary.classes)))
    batch = next(task.batches)["labeled"]
    assert batch["image"].shape == (4, 64, 64, 3)
    assert batch["label"].shape == (4, 16, 16)


def test_training_goes_on_from_a_sed(files: ml_collections.ConfigDict, tmp_path: Path) -> None:
    config = files.copy_and_resolve_references().unlock()
    config.init = tiny_sed.write_sed(tmp_path / "sed.safetensors")
    sed = initial_sed(config, 2)
    assert sed.config.aggregator == tiny_sed.CONFIG.aggregator
    assert sed.config.short_side == 40
    jax.tree.map(np.testing.assert_array_equal, sed.aggregator, tiny_sed.parts()["aggregator"])
    with pytest.raises(InputError, match="trained with 2 prompt templates, the vocabulary has 1"):
        initial_sed(config, 1)


def test_shipped_weights_say_where_they_come_from() -> None:
    assert SHIPPED.stat().st_size <= 2_000_000
    _, metadata = read_safetensors(SHIPPED)
    assert json.loads(metadata["experiment"]) == json.loads(json.dumps(ovs_sed_shapes.get_config().to_dict()))
    assert metadata["data_sha256"] == data_sha256(load_vocabulary("shapes"))
    assert "semiovs_jax.ovs.train" in metadata["command"]


def test_shipped_weights_label_unseen_scenes() -> None:
    model = build_ovs({"name": "sed", "weights": "shapes_sed", "vocabulary": "shapes"}, 1 + len(TARGETS))
    quality = label_quality(model, held_out_scenes(5, 60), (MAX_SIDE, MAX_SIDE), IGNORE_INDEX)
    assert quality.mean_iou > 0.85  # 0.90 on the 200 scenes of the file's own metadata


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "catseg"}, r"config.kind is 'catseg'; choose one of 'maskclip', 'sed'"),
        ({"precision": "float8"}, r"config.precision is 'float8'"),
        ({"data.source": "web"}, r"config.data.source is 'web'"),
        ({"train.batch_size": 3}, r"config.train.batch_size=3 cannot be split over 2 devices"),
        ({"model.image_size": 60}, r"config.model.image_size is 60"),
        ({"vocabulary": "voc21"}, r"voc21.json: the first synonyms"),
        ({"init": "nowhere.safetensors"}, r"nowhere.safetensors"),
        ({"model.dtype": "int8"}, r"config.model.dtype is 'int8'"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tiny: ml_collections.ConfigDict, tmp_path: Path, changes: dict, message: str
) -> None:
    config = tiny.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_vit_cannot_start_a_sed(files: ml_collections.ConfigDict, tmp_path: Path) -> None:
    config = files.copy_and_resolve_references().unlock()
    config.init = tiny_clip.write_clip(tmp_path / "clip.safetensors")
    with pytest.raises(InputError, match="holds a CLIP with a ViT"):
        initial_sed(config, 1)
    config.data.crop_size = 32
    with pytest.raises(InputError, match=r"config.data.crop_size=32 is not config.model.image_size=64"):
        make_task(config)
