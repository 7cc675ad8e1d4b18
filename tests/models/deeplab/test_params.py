import dataclasses
import hashlib
import re
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from semiovs_jax import convert as command
from semiovs_jax.models import Functional
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.file import DeepLabConfig, load_deeplab
from semiovs_jax.models.deeplab.params import convert_student, infer_architecture
from semiovs_jax.models.deeplab.resnet_params import convert_resnet, load_backbone
from semiovs_jax.weights.files import load_weights, save_weights
from semiovs_jax.weights.keys import WeightMismatchError, flatten
from semiovs_jax.weights.state_dicts import read_state_dict
from tests.fake_torch import FakeTensor, fake_torch
from tests.golden import Golden, golden_path

TINY = Architecture(
    (2, 1), stem_widths=(3, 4, 5), widths=(2, 3), dilate=(True,), channels=4, low_level_channels=2, rates=(1, 2, 3)
)


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def published_backbone() -> dict[str, np.ndarray]:
    """A state dict with the published names and the depths and widths of TINY."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv, bn, c_in, c_out in (("0", "conv1.1", 3, 3), ("3", "conv1.4", 3, 4), ("6", "bn1", 4, 5)):
        shapes |= {f"conv1.{conv}.weight": (c_out, c_in, 3, 3), **norm(bn, c_out)}
    features = 5
    for stage, (blocks, width) in enumerate(((2, 2), (1, 3)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            kernels = [(width, features, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for i, kernel in enumerate(kernels, 1):
                shapes |= {f"{name}.conv{i}.weight": kernel, **norm(f"{name}.bn{i}", kernel[0])}
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, features, 1, 1)
                shapes |= norm(f"{name}.downsample.1", 4 * width)
            features = 4 * width
    shapes |= {"fc.weight": (10, features), "fc.bias": (10,)}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def published_student() -> dict[str, np.ndarray]:
    """A state dict of a student with the backbone of TINY and six classes, each value a formula of its position."""
    source = {f"backbone.{name}": value for name, value in published_backbone().items() if not name.startswith("fc.")}
    low, high, width, reduced = 8, 12, 4, 2
    convs = {f"head.b{i}": (width, high, size, size) for i, size in enumerate((1, 3, 3, 3))}
    convs |= {"head.b4.gap.": (width, high, 1, 1), "head.project": (width, 5 * width, 1, 1)}
    convs |= {"reduce": (reduced, low, 1, 1), "fuse": (width, width + reduced, 3, 3), "fuse..": (width, width, 3, 3)}
    first = {"head.b4.gap.": ("head.b4.gap", 1), "fuse..": ("fuse", 3)}
    shapes = {"classifier.weight": (6, width, 1, 1), "classifier.bias": (6,)}
    for key, shape in convs.items():
        name, i = first.get(key, (key, 0))
        shapes |= {f"{name}.{i}.weight": shape, **norm(f"{name}.{i + 1}", shape[0])}
    shapes |= {name: value.shape for name, value in source.items()}
    formulas = {
        name: np.sin(np.arange(np.prod(shape, dtype=int)) + i) for i, (name, shape) in enumerate(shapes.items())
    }
    return {
        name: (1 + value**2 if name.endswith("var") else value).reshape(shapes[name]).astype(np.float32)
        for name, value in formulas.items()
    }


def fresh_student(architecture: Architecture = TINY):
    student = nnx.eval_shape(lambda: architecture.build(6, rngs=nnx.Rngs(0)))
    _, params, stats = Functional.create(student)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), (params, stats))


def test_architecture_is_read_off_names_and_shapes():
    found = infer_architecture(published_backbone())
    assert (found.stage_sizes, found.stem_widths, found.widths, found.expansion) == ((2, 1), (3, 4, 5), (2, 3), 4)
    golden = Golden(golden_path("deeplab_r50_forward"))
    found = infer_architecture({name: np.empty(shape) for name, shape in golden.shapes.items()})
    assert found == Architecture((3, 4, 6, 3))


def test_golden_names_fill_a_student_exactly():
    golden = Golden(golden_path("semiovs_unimatch_step"))
    source = golden.state_dict()
    student = nnx.eval_shape(lambda: Architecture((1, 1, 1, 1)).build(21, rngs=nnx.Rngs(0)))
    _, params, stats = Functional.create(student)
    params, stats = convert_student(source, params, stats)
    np.testing.assert_array_equal(
        params["aspp"]["branches"][2]["conv"]["kernel"], source["head.b2.0.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(stats["fuse"][1]["norm"]["var"], source["fuse.4.running_var"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.1.bn3.running_var": None}, "without a source:\n    backbone/stages/0/1/conv3/norm/var"),
        ({"layer1.1.conv2.bias": np.zeros(2)}, r"no rule matches:\n    layer1.1.conv2.bias"),
        ({"layer2.0.conv3.weight": np.zeros((12, 4, 1, 1))}, r"has shape \(1, 1, 4, 12\), expected"),
        ({"layer1.2.bn1.weight": np.zeros(2)}, "not in the model:\n    layer1.2.bn1.weight"),
    ],
)
def test_backbones_that_do_not_fit_are_refused(change, message):
    source = {k: v for k, v in (published_backbone() | change).items() if v is not None}
    with pytest.raises(WeightMismatchError, match=message):
        convert_resnet(source, "resnet.pth")


def test_other_networks_are_named():
    source = published_backbone()
    source["features.conv0.weight"] = source.pop("conv1.0.weight")
    with pytest.raises(InputError, match=r"densenet\.pth: no `conv1\.0\.weight`.*resnet50\.pth.*torchvision"):
        convert_resnet(source, "densenet.pth")


def converted(tmp_path):
    source, out = tmp_path / "resnet.safetensors", tmp_path / "out.safetensors"
    save_file(published_backbone(), source)
    return source, out, command.main([str(source), str(out), "--kind=resnet"])


def test_command_writes_weights_with_provenance(tmp_path, capsys):
    source, out, status = converted(tmp_path)
    assert status == 0
    values, metadata = load_weights(out)
    assert metadata["kind"] == "resnet"
    assert metadata["source"] == "resnet.safetensors"
    assert metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert len(metadata["sha256"]) == 64
    printed = capsys.readouterr().out
    assert {"dropped fc.weight", "dropped fc.bias"} <= set(printed.splitlines())
    assert "dropped layer1.0.bn1.num_batches_tracked\n" in printed
    last = printed.splitlines()[-1]
    assert last.startswith("next: ")
    assert f" check_data --config=FILE --config.KEY.weights={out}, with KEY model (" in last
    np.testing.assert_array_equal(
        values["backbone/stem/2/conv/kernel"], published_backbone()["conv1.6.weight"].transpose(2, 3, 1, 0)
    )


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert command.main([str(tmp_path / "no.pth"), str(tmp_path / "out"), "--kind=resnet"]) == 2
    assert "no.pth: no such weights file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_backbone_fills_a_student_and_leaves_its_head(tmp_path):
    _, out, _ = converted(tmp_path)
    params, stats = fresh_student()
    before, source = flatten(params) | flatten(stats), published_backbone()
    params, stats = load_backbone(str(out), params, stats)
    after = flatten(params) | flatten(stats)
    assert after.keys() == before.keys()
    for path in after:
        if not path.startswith("backbone/"):
            np.testing.assert_array_equal(after[path], before[path])
    np.testing.assert_array_equal(
        after["backbone/stages/1/0/shortcut/norm/mean"], source["layer2.0.downsample.1.running_mean"]
    )
    np.testing.assert_array_equal(after["backbone/stages/0/1/conv3/norm/scale"], source["layer1.1.bn3.weight"])
    assert jax.tree.structure(params) == jax.tree.structure(fresh_student()[0])


def test_backbone_of_another_depth_is_refused(tmp_path):
    _, out, _ = converted(tmp_path)
    params, stats = fresh_student(dataclasses.replace(TINY, stage_sizes=(1, 1)))
    with pytest.raises(WeightMismatchError, match=r"out\.safetensors(.|\n)*not in the model:\n    backbone/stages/0/1"):
        load_backbone(str(out), params, stats)


def test_weights_of_another_kind_are_refused(tmp_path):
    save_weights(tmp_path / "clip", {"a": np.zeros(1)}, {"kind": "clip"})
    with pytest.raises(InputError, match=r"kind 'clip'.*--kind=resnet"):
        load_backbone(str(tmp_path / "clip"), *fresh_student())


@pytest.fixture
def pth(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(bytes(2**24))  # a tensor never has more bytes than its file
    return path


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"state_dict": d, "epoch": 3}, lambda d: {"model": d}])
def test_pytorch_files(pth, monkeypatch, wrap):
    content = {"module.a": FakeTensor([1.0]), "module.b": FakeTensor([2.0], "torch.bfloat16")}
    monkeypatch.setitem(sys.modules, "torch", fake_torch(wrap(content)))
    assert {k: v.tolist() for k, v in read_state_dict(pth).items()} == {"a": [1.0], "b": [2.0]}


@pytest.mark.parametrize(
    ("torch", "message"),
    [
        (None, r"w\.pth: .*PyTorch, which is not installed.*semiovs-jax\[convert\]"),
        (fake_torch(RuntimeError("bad magic")), r"w\.pth: cannot be read as plain tensors \(bad magic\)"),
        (fake_torch([1, 2]), "holds no state dict"),
        (fake_torch({"epoch": 3}), "holds no state dict"),
    ],
)
def test_unreadable_pytorch_files(pth, monkeypatch, torch, message):
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(InputError, match=message):
        read_state_dict(pth)


def test_a_checkpoint_with_a_numpy_score_is_read(pth):
    torch = pytest.importorskip("torch", reason="needs the extra convert")
    torch.save({"model": {"module.a": torch.ones(1)}, "epoch": 3, "previous_best": np.float64(80.5)}, pth)
    assert read_state_dict(pth) == {"a": 1}


def test_a_student_is_read_back_with_its_statistics(tmp_path, pth, monkeypatch, capsys):
    source = published_student()
    content = {"model": {f"module.{name}": FakeTensor(value) for name, value in source.items()}, "epoch": 3}
    monkeypatch.setitem(sys.modules, "torch", fake_torch(content))
    out = tmp_path / "student.safetensors"
    assert command.main([str(pth), str(out), "--kind=deeplab"]) == 0
    assert "dropped backbone.bn1.num_batches_tracked\n" in capsys.readouterr().out
    assert load_weights(out)[1].keys() == {"kind", "config", "source", "source_sha256", "sha256"}

    config, *found = load_deeplab(str(out))
    assert config == DeepLabConfig(dataclasses.replace(TINY, rates=(6, 12, 18)), num_classes=6)
    functional, *fresh = Functional.create(nnx.eval_shape(lambda: config.architecture.build(6, rngs=nnx.Rngs(0))))
    expected = convert_student(source, *fresh)
    assert jax.tree.structure(found) == jax.tree.structure(list(expected))
    jax.tree.map(np.testing.assert_array_equal, found, list(expected))
    np.testing.assert_array_equal(found[1]["fuse"][1]["norm"]["var"], source["fuse.4.running_var"])
    np.testing.assert_array_equal(found[0]["classifier"]["kernel"][0, 0], source["classifier.weight"][:, :, 0, 0].T)
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), np.float32)
    logits, _ = jax.eval_shape(lambda p, s, x: functional.apply(p, s, x, train=False), *found, image)
    assert logits.shape == (1, 33, 33, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.weight": None}, r"no `classifier\.weight`.*--kind=resnet"),
        ({"head.b2.1.bias": None}, r"without a source:\n    aspp/branches/2/norm/bias"),
        ({"auxiliary.weight": np.zeros(2)}, r"no rule matches:\n    auxiliary\.weight"),
        ({"classifier.bias": np.zeros(5)}, r"has shape \(5,\), expected \(6,\)"),
    ],
)
def test_other_students_are_refused(tmp_path, capsys, change, message):
    source = {k: v for k, v in (published_student() | change).items() if v is not None}
    save_file(source, tmp_path / "student.safetensors")
    assert command.main([str(tmp_path / "student.safetensors"), str(tmp_path / "out"), "--kind=deeplab"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
