import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.labels.store import FileStore
from semiovs_jax import label as label_module
from semiovs_jax.ovs.labeling import job
from semiovs_jax.ovs.labeling.job import MAX_CANVASES
from semiovs_jax.runtime.sharding import make_mesh
from tests import fake_ovs
from tests.fake_ovs import NEVER, ColorOVS, assert_killed, label_config, start_labeling, write_images

COUNT = 29


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ood")
    write_images(root, COUNT)
    return root


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    report = fake_ovs.label(label_config(images, folder), ColorOVS())
    assert report[:4] == (COUNT, COUNT, True, ())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the manifest's facts about the last run, which include its seconds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(found["manifest.json"])
    manifest.pop("last_run", None)
    return found | {"manifest.json": json.dumps(manifest).encode()}


def test_every_image_has_its_planes(images, undisturbed):
    found = {str(path.relative_to(images).with_suffix("")): path for path in images.rglob("*.*")}
    assert {
        str(p.relative_to(undisturbed / "labels").with_suffix("")) for p in undisturbed.rglob("labels/**/*.png")
    } == (set(found))
    info = dataset_info("voc21")
    for id_, path in found.items():
        with (
            Image.open(path) as image,
            Image.open(undisturbed / "labels" / f"{id_}.png") as label,
            Image.open(undisturbed / "confidence" / f"{id_}.png") as confidence,
        ):
            assert label.mode == "P"
            assert confidence.mode == "L"
            assert label.size == confidence.size == image.size
            np.testing.assert_array_equal(np.reshape(label.getpalette(), (-1, 3))[:21], info.palette[:21])
            assert set(np.unique(label)) <= {0, 1, 2, 3, info.ignore_index}
            ignored = np.asarray(label) == info.ignore_index
            np.testing.assert_array_equal(np.asarray(confidence)[ignored], 0)
            assert np.asarray(confidence)[~ignored].min(initial=255) >= 76


def test_planes_are_the_models_at_the_images_own_size(images, undisturbed):
    ovs = ColorOVS()
    model = jax.jit(ovs.label, static_argnames="label_size")
    for path in sorted(images.rglob("*.*"))[:3]:
        id_ = path.relative_to(images).with_suffix("")
        with Image.open(path) as image:
            square = np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BILINEAR), np.float32)
            found = model(ovs.weights, square[None], label_size=(image.height, image.width))
        with Image.open(undisturbed / "labels" / f"{id_}.png") as label:
            expected = np.where(found.valid[0], found.label[0], 255)
            assert np.mean(np.asarray(label) != expected) < 2e-3
        with Image.open(undisturbed / "confidence" / f"{id_}.png") as confidence:
            expected = np.where(found.valid[0], np.round(255 * found.confidence[0]), 0)
            assert np.abs(np.asarray(confidence, np.int32) - expected).max() <= 1


def test_a_model_may_preprocess_images_to_float(images, undisturbed, tmp_path):
    class FloatOVS(ColorOVS):
        def preprocess(self, image):
            return super().preprocess(image).astype(np.float32)

    fake_ovs.label(label_config(images, tmp_path), FloatOVS())
    found, expected = contents(tmp_path), contents(undisturbed)
    assert {name: found[name] for name in found if name.endswith(".png")} == {
        name: expected[name] for name in expected if name.endswith(".png")
    }


def test_manifest_says_what_made_the_labels(images, undisturbed):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert manifest["finished"] is True
    assert manifest["fingerprint"] == ColorOVS().fingerprint
    assert manifest["vocabulary"] == "voc21"
    assert len(manifest["vocabulary_sha256"]) == 64
    assert manifest["counts"] == {"images": COUNT, "labeled": COUNT, "bad": 0}
    pixels = sum(np.prod(Image.open(path).size) for path in images.rglob("*.*"))
    assert sum(manifest["pixels"].values()) == pixels
    assert manifest["pixels"]["aeroplane"] > 0
    assert manifest["versions"]["jax"] == jax.__version__
    assert {"numpy", "pillow"} <= manifest["versions"].keys()
    assert manifest["last_run"]["labeled"] == COUNT
    assert manifest["last_run"]["seconds"] > 0
    assert not list(undisturbed.rglob("*.part"))


def test_finished_labels_are_recognized_and_kept(images, undisturbed):
    before = contents(undisturbed)
    kept = [*undisturbed.rglob("*.png"), undisturbed / "manifest.json"]
    times = {path: path.stat().st_mtime_ns for path in kept}
    config = label_config(images, undisturbed)
    assert fake_ovs.complete(config, ColorOVS())
    assert fake_ovs.label(config, ColorOVS()).labeled == 0
    assert contents(undisturbed) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == times


def label_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "labels").rglob("*.png")}


def test_killed_and_restarted_ends_with_the_same_bytes(images, undisturbed, tmp_path):
    assert_killed(start_labeling(images, tmp_path, 0, 1, renames=20), tmp_path)
    done = label_times(tmp_path)
    assert 5 <= len(done) < COUNT
    config = label_config(images, tmp_path)
    assert not fake_ovs.complete(config, ColorOVS())
    report = fake_ovs.label(config, ColorOVS())
    assert report.labeled == COUNT - len(done)
    assert label_times(tmp_path).items() >= done.items()
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.slow
def test_two_processes_killed_five_times_end_with_the_same_bytes(tmp_path):
    count, images, folder = 200, tmp_path / "ood", tmp_path / "labels"
    write_images(images, count)
    renames = {0: [25, 40, 33, NEVER], 1: [40, 17, NEVER]}
    processes = {index: start_labeling(images, folder, index, 2, renames=renames[index].pop(0)) for index in renames}
    for index in (0, 1, 0, 1, 0):
        assert_killed(processes[index], folder)
        assert 0 < len(label_times(folder)) < count
        processes[index] = start_labeling(images, folder, index, 2, renames=renames[index].pop(0))
    assert [process.wait(timeout=300) for process in processes.values()] == [0, 0]

    assert len(label_times(folder)) == count
    assert fake_ovs.label(label_config(images, folder), ColorOVS()).labeled == 0  # no part is left
    fake_ovs.label(label_config(images, tmp_path / "alone"), ColorOVS())
    assert contents(folder) == contents(tmp_path / "alone")


def test_shares_are_disjoint_and_together_complete(images, undisturbed, tmp_path):
    config = label_config(images, tmp_path)
    first = fake_ovs.label(config, ColorOVS(), process_index=0, process_count=2)
    assert not first.finished
    assert not fake_ovs.complete(config, ColorOVS())
    second = fake_ovs.label(config, ColorOVS(), process_index=1, process_count=2)
    assert second.finished
    assert first.labeled + second.labeled == COUNT
    assert 0 < first.labeled < COUNT
    assert contents(tmp_path) == contents(undisturbed)


def test_a_share_that_does_not_exist(images, tmp_path):
    with pytest.raises(InputError, match="process_index 2 of 2: use 0 to 1"):
        fake_ovs.label(label_config(images, tmp_path), ColorOVS(), process_index=2, process_count=2)


def test_few_shapes_are_compiled(tmp_path, monkeypatch):
    (tmp_path / "ood").mkdir()
    for i in range(9):
        Image.new("RGB", (20 + 40 * (i % 3), 20 + 30 * (i // 3))).save(tmp_path / "ood" / f"{i}.png")
    shapes = []
    ovs = ColorOVS()

    def counted(weights, image, *, label_size, size):
        shapes.append((image.shape, label_size))
        return ColorOVS.label(ovs, weights, image, label_size=label_size, size=size)

    monkeypatch.setattr(ovs, "label", counted, raising=False)
    fake_ovs.label(label_config(tmp_path / "ood", tmp_path / "labels"), ovs)
    assert len(shapes) == len(set(shapes)) == MAX_CANVASES
    assert {shape for shape, _ in shapes} == {(8, 24, 24, 3)}  # batch 6, rounded up to 8 devices

    shapes.clear()
    monkeypatch.setattr(job, "IMAGES_A_CANVAS", 5)
    fake_ovs.label(label_config(tmp_path / "ood", tmp_path / "again"), ovs)
    assert len(shapes) == 1
    assert contents(tmp_path / "again") == contents(tmp_path / "labels")


@pytest.mark.parametrize("devices", [1, 2])
def test_device_count_changes_nothing_that_matters(images, undisturbed, tmp_path, devices):
    fake_ovs.label(label_config(images, tmp_path), ColorOVS(), make_mesh(jax.devices()[:devices]))
    for path in undisturbed.rglob("labels/**/*.png"):
        with Image.open(path) as expected, Image.open(tmp_path / path.relative_to(undisturbed)) as found:
            assert np.mean(np.asarray(expected) != np.asarray(found)) < 2e-3


def bad_images(root: Path) -> None:
    write_images(root, 7)
    whole = (root / "001.jpg").read_bytes()
    (root / "001.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "002.jpg").write_bytes(b"")


def test_bad_images_are_named_and_counted(tmp_path):
    bad_images(tmp_path / "ood")
    config = label_config(tmp_path / "ood", tmp_path / "labels", max_bad_records=2)
    report = fake_ovs.label(config, ColorOVS())
    assert report.finished
    assert set(report.bad) == {"001", "002"}
    assert report.labeled == 5
    manifest = json.loads((tmp_path / "labels/manifest.json").read_text())
    assert manifest["counts"] == {"images": 7, "labeled": 5, "bad": 2}
    assert "001.jpg" in manifest["bad"]["001"]
    assert not (tmp_path / "labels/labels/001.png").exists()
    assert fake_ovs.complete(config, ColorOVS())

    write_images(tmp_path / "ood", 7)  # repaired
    assert fake_ovs.label(config, ColorOVS()).labeled == 2
    manifest = json.loads((tmp_path / "labels/manifest.json").read_text())
    assert manifest["bad"] == {}
    assert not list((tmp_path / "labels/bad").iterdir())


def test_too_many_bad_images_are_an_error(tmp_path):
    bad_images(tmp_path / "ood")
    config = label_config(tmp_path / "ood", tmp_path / "labels", max_bad_records=1)
    with pytest.raises(InputError, match=r"00[12]\.jpg.*max_bad_records=1"):
        fake_ovs.label(config, ColorOVS())
    assert not fake_ovs.complete(config, ColorOVS())


def test_new_images_make_the_labels_incomplete(tmp_path):
    write_images(tmp_path / "ood", 4)
    config = label_config(tmp_path / "ood", tmp_path / "labels")
    fake_ovs.label(config, ColorOVS())
    write_images(tmp_path / "ood", 6)
    assert not fake_ovs.complete(config, ColorOVS())
    assert fake_ovs.label(config, ColorOVS()).labeled == 2
    assert fake_ovs.complete(config, ColorOVS())


@pytest.mark.parametrize("call", [fake_ovs.complete, lambda c, o: fake_ovs.label(c, o)])
def test_stale_labels_are_refused(images, undisturbed, call):
    config = label_config(images, undisturbed)
    config.ovs.vocabulary = "context60"
    config.ovs.image_size = 48
    before = contents(undisturbed)
    with pytest.raises(InputError) as caught:
        call(config, ColorOVS(fingerprint="b" * 64))
    message = str(caught.value)
    for part in (
        str(undisturbed),
        "stale labels",
        "vocabulary was voc21, is context60",
        "image_size was 24, is 48",
        "remove the folder",
        "config.ovs.labels_dir",
    ):
        assert part in message
    assert contents(undisturbed) == before


def test_stale_for_a_reason_the_manifest_does_not_hold(images, undisturbed):
    with pytest.raises(InputError, match=f"fingerprint was {'a' * 8}, is {'b' * 8};"):
        fake_ovs.complete(label_config(images, undisturbed), ColorOVS(fingerprint="b" * 64))


@pytest.mark.parametrize(("content", "complaint"), [(None, "without manifest.json"), ("{", "cannot be read")])
def test_missing_or_damaged_manifest(images, tmp_path, content, complaint):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/x.png").write_bytes(b"")
    if content:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=complaint):
        fake_ovs.complete(label_config(images, tmp_path), ColorOVS())


def test_unwritable_folder(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*cannot be written"):
        fake_ovs.label(label_config(images, tmp_path / "file" / "labels"), ColorOVS())


def test_a_failing_write_ends_the_run(images, tmp_path, monkeypatch):
    def fail(*args):
        raise InputError("disk full")

    monkeypatch.setattr(FileStore, "write_part", fail)
    with pytest.raises(InputError, match="disk full"):
        fake_ovs.label(label_config(images, tmp_path), ColorOVS())
    assert not fake_ovs.complete(label_config(images, tmp_path), ColorOVS())


def test_command_line(images, tmp_path, monkeypatch, caplog):
    config = label_config(images, tmp_path / "labels")

    class Flags:
        distributed = False
        process_index = None
        process_count = None
        source = out = classes = ovs_weights = ""

    Flags.config = config
    setattr(Flags, "import", "")
    monkeypatch.setattr("semiovs_jax.ood_labels.model_faults", lambda ovs_config: [])
    monkeypatch.setattr(
        "semiovs_jax.ood_labels.build_ovs", lambda ovs_config, num_classes: ColorOVS(num_classes=num_classes)
    )
    monkeypatch.setattr("sys.argv", ["semiovs label", "--config=mine.py", "--config.ovs.batch_size=4"])
    with caplog.at_level(logging.INFO, "semiovs_jax"):
        label_module.main(Flags)
    assert fake_ovs.complete(config, ColorOVS())
    labels = tmp_path / "labels"
    assert caplog.messages[-2:] == [
        f"{labels}: labels/; look at {labels / 'contact_sheet.html'} before you train on the labels",
        "next: semiovs train --config=mine.py --config.ovs.batch_size=4 --workdir=RUN",
    ]
    assert (tmp_path / "labels/contact_sheet.html").is_file()
