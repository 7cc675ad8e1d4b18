"""ImageNet ResNets of every publisher: names, features, and the students on them."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from semiovs_jax import convert as command
from semiovs_jax.models import FAMILIES, Functional, build_student
from semiovs_jax.models.deeplab.params import infer_architecture
from semiovs_jax.models.deeplab.resnet_params import convert_resnet, read_architecture
from semiovs_jax.models.deeplab.student import STUDENTS
from semiovs_jax.weights.keys import fill, flatten
from tests.golden import Golden, assert_matches, golden_path
from tests.replays import imagenet
from tests.saved_run import made_up

GOLDENS = {
    "imagenet_resnet18_timm": "resnet18",
    "imagenet_resnet18_transformers": "resnet18",
    "imagenet_resnet34_torchvision": "resnet34",
    "imagenet_resnet50_torchvision": "resnet50_v1b",
    "imagenet_resnet50_transformers": "resnet50_v1b",
    "imagenet_resnet101_timm": "resnet101_v1b",
}
CHEAP = ("resnet18_timm", "resnet50_torchvision", "resnet50_transformers")


def student_shapes(name: str):
    config = {"backbone": name, "dtype": "float32", "remat": "none"}
    return Functional.create(nnx.eval_shape(lambda: build_student(config, 5, image_size=33, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.endswith(CHEAP) else pytest.mark.slow) for name in GOLDENS]
)
def test_features_equal_those_of_the_publishers_networks(name: str):
    golden = Golden(golden_path(name))
    assert_matches(golden, imagenet.replay(golden, double=False))


@pytest.mark.parametrize(("name", "student"), GOLDENS.items())
def test_a_publishers_names_fill_the_student_of_that_depth(name: str, student: str):
    golden = Golden(golden_path(name))
    source = {key: np.broadcast_to(np.float32(0), shape) for key, shape in golden.shapes.items()}
    found = infer_architecture(source)
    assert dataclasses.replace(found, rates=(6, 12, 18)) == STUDENTS[student]
    _, params, batch_stats = student_shapes(student)
    wanted = {path for path in (*flatten(params), *flatten(batch_stats)) if path.startswith("backbone/")}
    converted = convert_resnet(source, name)
    assert converted.values.keys() == wanted
    classifier = {"classifier.1.weight", "classifier.1.bias"} if "transformers" in name else {"fc.weight", "fc.bias"}
    assert {key for key in converted.dropped if not key.endswith("num_batches_tracked")} == classifier


def write_resnet18(path: Path) -> None:
    golden = Golden(golden_path("imagenet_resnet18_timm"))
    save_file(golden.state_dict(), path.with_suffix(".source.safetensors"))
    assert command.main([str(path.with_suffix(".source.safetensors")), str(path), "--kind=resnet"]) == 0


def test_a_converted_file_starts_its_student_and_no_other(tmp_path: Path):
    path = tmp_path / "resnet18.safetensors"
    write_resnet18(path)
    assert read_architecture(str(path)) == STUDENTS["resnet18"]
    _, *shapes = student_shapes("resnet18")
    fresh = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree) for tree in shapes]
    params, _ = FAMILIES["resnet18"].load_pretrained(str(path), *fresh)
    source = Golden(golden_path("imagenet_resnet18_timm")).state_dict()
    kernel = params["backbone"]["stages"][1][0]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, source["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
    assert not params["classifier"]["kernel"].any()
    for other in ("resnet34", "resnet50", "resnet50_v1b"):
        _, *shapes = student_shapes(other)
        with pytest.raises(InputError, match=r"another student; set config\.model\.backbone to resnet18"):
            FAMILIES[other].load_pretrained(str(path), *shapes)


def test_a_plain_stem_is_told_from_the_deep_one():
    names = ("resnet50", "resnet50_v1b", "resnet101", "resnet101_v1b", "resnet18", "resnet34")
    shapes = {name: {path: leaf.shape for path, leaf in flatten(student_shapes(name)[1]).items()} for name in names}
    assert all(shapes[a] != shapes[b] for a, b in itertools.combinations(names, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer2.0.downsample.2.weight": np.zeros(8)}, "a ResNet-D, whose shortcuts pool"),
        ({"layer1.0.se.fc1.weight": np.zeros(8)}, r"no rule matches:\n    layer1\.0\.se\.fc1\.weight"),
        ({"layer1.0.conv2.weight": None}, r"without backbone/stages/0/0/conv2/conv/kernel"),
    ],
)
def test_other_resnets_are_refused(change, message):
    shapes = Golden(golden_path("imagenet_resnet18_timm")).shapes
    source = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()} | change
    with pytest.raises(InputError, match=message):
        convert_resnet({key: value for key, value in source.items() if value is not None}, "net.pth")


@pytest.mark.parametrize(("kind", "widths"), [("basic", [6, 8]), ("bottleneck", [8, 12])])
def test_a_pth_of_the_installed_transformers_gives_its_features(kind: str, widths: list[int], tmp_path: Path):
    torch = pytest.importorskip("torch", reason="needs the extra convert")
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    network = ResNetModel(ResNetConfig(embedding_size=5, hidden_sizes=widths, depths=[2, 1], layer_type=kind)).eval()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    out = tmp_path / "net.safetensors"
    assert command.main([str(tmp_path / "net.pth"), str(out), "--kind=resnet"]) == 0
    architecture = dataclasses.replace(read_architecture(str(out)), dilate=(False,))
    function, *shapes = Functional.create(nnx.eval_shape(lambda: architecture.build_backbone(rngs=nnx.Rngs(0))))
    values = convert_resnet({key: value.numpy() for key, value in network.state_dict().items()}, "net").values
    weights = [fill(tree, {key.removeprefix("backbone/"): value for key, value in values.items()}) for tree in shapes]
    image = np.random.default_rng(0).standard_normal((2, 21, 26, 3), np.float32)
    (features, _), _ = jax.jit(function.apply, static_argnames="train")(*weights, image, train=False)
    with torch.no_grad():
        expected = network(torch.tensor(image.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states[1:]
    for ours, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_padding_and_remat_change_nothing_of_basic_blocks_and_the_plain_stem():
    tiny = dataclasses.replace(STUDENTS["resnet18"], stage_sizes=(1, 2, 1, 1), stem_widths=(8,), widths=(8, 8, 16, 16))
    tiny = dataclasses.replace(tiny, channels=16, low_level_channels=8)
    (plain, *shapes), (again, *_) = (
        Functional.create(nnx.eval_shape(lambda remat=remat: tiny.build(5, remat=remat, rngs=nnx.Rngs(0))))
        for remat in ("none", "blocks")
    )
    weights = [made_up(tree, seed) for seed, tree in enumerate(shapes)]
    sizes = np.array([[65, 49], [38, 64]], np.int32)
    x = np.random.default_rng(0).standard_normal((2, 66, 66, 3), np.float32)
    apply = jax.jit(plain.apply, static_argnames="train")
    padded, _ = apply(*weights, x, train=False, size=sizes)
    for i, (height, width) in enumerate(sizes):
        alone, _ = apply(*weights, x[i : i + 1, :height, :width], train=False)
        assert np.abs(alone).max() > 1
        np.testing.assert_allclose(padded[i, :height, :width], alone[0], atol=1e-4, rtol=0)

    def gradient(function: Functional):
        loss = lambda params: (function.apply(params, weights[1], x, train=True)[0] ** 2).mean()  # noqa: E731
        return jax.jit(jax.grad(loss))(weights[0])

    expected, found = flatten(gradient(plain)), flatten(gradient(again))
    for path, value in expected.items():
        assert np.abs(value).max() > 0, path
        np.testing.assert_allclose(found[path], value, atol=1e-4 * np.abs(value).max(), err_msg=path)
