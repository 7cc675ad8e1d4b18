"""What is wrong with weights, words and cached labels is told with what to do about it."""

import json

import pytest

from configs import custom
from semiovs_jax.ovs import model_fingerprint
from tests import custom_tree, fake_ovs
from tests.check_data.report import WEIGHTS, check, faults_of
from tests.custom_tree import label, write_label, write_text
from tests.fake_ovs import ColorOVS, label_config, prepare_images


def configured() -> ColorOVS:
    """A model that passes for the one that `check` configures."""
    config = custom.get_config().unlock()
    config.update_from_flattened_dict(WEIGHTS)
    return ColorOVS(fingerprint=model_fingerprint(config.ovs))


def test_the_words_of_semivl_are_looked_at(root, capsys):
    semivl = {
        "method.name": "semivl",
        "clip.weights": "shapes_clip",
        "clip.vocabulary": "data/custom/vocabulary.json",
    }
    assert "clip vocabulary custom: 3 classes" in check(capsys, **semivl)[1]
    status, text = check(capsys, **{**semivl, "clip.vocabulary": "voc21_semivl"})
    assert status == 1
    (fault,) = faults_of(text)
    assert "config.clip.vocabulary" in fault
    assert "21 classes, but the dataset has 3" in fault


def test_cached_labels_are_counted(root, capsys):
    for i in (0, 1):
        write_label(root / f"ovs_labels/labels/web/{i}.png", label())
    write_text(root / "ovs_labels/bad/web/2.txt", "damaged")
    assert "cached OVS labels: 2 labeled, 1 bad, 2 missing" in check(capsys)[1]


def test_labels_without_a_manifest_are_a_fault_as_for_labeling(root, capsys):
    write_label(root / "ovs_labels/labels/web/0.png", label())
    status, text = check(capsys)
    assert status == 1
    (fault,) = faults_of(text)
    assert "ovs_labels: holds labels without manifest.json; if another tool made them, set config.ovs.labels=" in fault


def test_changed_and_damaged_labels_are_named(root, capsys):
    fake_ovs.label(label_config(root / "ood", root / "ovs_labels"), configured())
    manifest = root / "ovs_labels/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "mean_confidence": 0.16}))
    _, text = check(capsys)
    assert "cached OVS labels: 5 labeled, 0 bad, 0 missing\n" in text
    assert "ovs_labels: the mean confidence of the labels is 0.16; below 0.3, the model often" in text
    custom_tree.write_image(root / "ood/web/3.jpg", 99)
    path = root / "ovs_labels/labels/web/1.png"
    path.write_bytes(path.read_bytes()[:-9])
    status, text = check(capsys)
    assert status == 0  # the next run labels them again
    assert "cached OVS labels: 3 labeled, 0 bad, 0 missing, 1 changed, 1 damaged" in text
    assert "1 OOD image(s) are not those that were labeled (web/3): main and label make their labels again" in text
    assert "labels/web/1.png: damaged label" in text
    for i in (0, 2):
        custom_tree.write_image(root / f"ood/web/{i}.jpg", 90 + i)
    status, text = check(capsys)
    assert status == 1
    assert "ovs_labels: holds labels of other images: 3 of 5 labeled images differ" in faults_of(text)[0]


def test_labels_of_other_words_are_a_fault_as_for_labeling(root, capsys):
    fake_ovs.label(label_config(root / "ood", root / "ovs_labels"), configured())
    assert check(capsys)[0] == 0
    vocabulary = json.loads((root / "vocabulary.json").read_text())
    vocabulary["classes"][1]["concepts"] = ["stain"]
    write_text(root / "vocabulary.json", json.dumps(vocabulary))
    status, text = check(capsys)
    assert status == 1
    (fault,) = faults_of(text)
    assert "ovs_labels: stale labels, made otherwise: " in fault


def test_weights_of_the_embedded_benchmark_are_doubted_for_other_data(root, capsys):
    status, text = check(capsys, **{"ovs.weights": "shapes_clip"})
    assert status == 0
    assert "config.ovs.weights=shapes_clip: this small model is trained on drawn shapes (background; circle;" in text
    assert "labels of floor; blob; bar are noise" in text


def test_cached_labels_in_shards_are_counted_and_damage_is_a_fault(root, capsys):
    prepare_images(root / "ood", root / "prepared")
    changes = {"data.ood_root": "data/custom/prepared", "ovs.labels_dir": "data/custom/prepared/labels"}
    fake_ovs.label(label_config(root / "prepared", root / "prepared/labels"), configured())
    status, text = check(capsys, **changes)
    assert status == 0
    assert "cached OVS labels: 5 labeled, 0 bad, 0 missing" in text
    next((root / "prepared/labels").glob("*-of-00001")).unlink()
    status, text = check(capsys, **changes)
    assert status == 1
    (fault,) = faults_of(text)
    assert "00000-of-00001: is missing; it held 5 label(s) (web/0; web/1; web/2; and 2 more); put the file" in fault


def test_missing_weights_are_told_at_once_with_their_commands(root, capsys):
    own = custom.get_config()
    changes = {"model.random_init": False, "ovs.name": "sed", "ovs.weights": own.ovs.weights, "ovs.image_size": 768}
    status, text = check(capsys, **changes)
    assert status == 1
    backbone, ovs = faults_of(text)
    assert backbone.startswith("config.model.weights='weights/resnet50.safetensors': no such file; fetch ")
    assert backbone.endswith(
        "--kind=resnet, or give the workdir of a run, or start from random weights with --config.model.random_init=True"
    )
    assert ovs.startswith("config.ovs.weights='weights/sed_large.safetensors': no such file; fetch sed_model_base.pth")
    assert "python -m semiovs_jax.convert SOURCE weights/sed_large.safetensors --kind=sed, or" in ovs
    assert ovs.endswith("train without OVS labels with --config.method.ood=none")
    assert check(capsys, **{**changes, "model.random_init": True, "method.ood": "none"})[0] == 0


@pytest.mark.parametrize(
    ("templates", "found"), [("imagenet80", "80 prompt"), ("", "data/custom/vocabulary.json: 2 prompt")]
)
def test_templates_that_the_weights_do_not_take_are_named_by_their_key(root, capsys, templates, found):
    sed = {"ovs.name": "sed", "ovs.weights": "shapes_sed", "ovs.templates": templates}
    (fault,) = faults_of(check(capsys, **sed)[1])
    assert fault.startswith(
        f"config.ovs.templates={templates!r}: {found} templates, but the SED was trained with 4; set"
    )
