"""Exported weights have the official names, and come back bit for bit."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax import convert, export
from semiovs_jax.exporting.formats.safetensors import write
from semiovs_jax.exporting.model import read_model
from semiovs_jax.models.deeplab import student as deeplab
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.file import load_deeplab
from semiovs_jax.models.deeplab.params import convert_student, student_state_dict
from semiovs_jax.models.functional import Functional
from semiovs_jax.models.semivl import student as semivl
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.weights.files import read_metadata, read_safetensors
from semiovs_jax.weights.keys import strip_prefix
from tests.golden import Golden, golden_path
from tests.saved_run import made_up


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    flags = SimpleNamespace(
        config=get_config(str(run)), workdir=str(run), which="best", format="safetensors", out=str(run / "weights")
    )
    export.main(flags)
    return run / "weights" / "model.safetensors"


def test_our_converter_reads_the_same_bits(run: Path, exported: Path, tmp_path: Path):
    assert convert.main([str(exported), str(tmp_path / "out.safetensors"), "--kind=deeplab"]) == 0
    _, params, batch_stats = load_deeplab(str(tmp_path / "out.safetensors"))
    trained = read_model(get_config(str(run)), str(run))
    jax.tree.map(np.testing.assert_array_equal, (params, batch_stats), (trained.params, trained.batch_stats))


@pytest.mark.parametrize("name", ["semiovs_unimatch_step", "deeplab_r50_forward"])
def test_names_shapes_and_values_are_those_of_the_official_code(name: str):
    golden = Golden(golden_path(name))
    blocks = (3, 4, 6, 3) if name == "deeplab_r50_forward" else (1, 1, 1, 1)
    student = nnx.eval_shape(lambda: Architecture(blocks).build(golden.shapes["classifier.bias"][0], rngs=nnx.Rngs(0)))
    _, params, batch_stats = Functional.create(student)
    official = golden.state_dict()
    found = student_state_dict(*convert_student(official, params, batch_stats))
    assert found.keys() == official.keys()
    for key, value in official.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == value.dtype


def test_students_on_a_plain_stem_have_torchvisions_names():
    basic = {"stem_widths": (4,), "stem_kernel": 7, "block": "basic", "expansion": 1}
    plain = Architecture((1, 1), widths=(2, 3), dilate=(True,), **basic)
    params, batch_stats = Functional.create(nnx.eval_shape(lambda: plain.build(3, rngs=nnx.Rngs(0))))[1:]
    weights = made_up(params, 0), made_up(batch_stats, 1)
    source = student_state_dict(*weights)
    names = {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight"}
    assert names <= strip_prefix(source, "backbone.").keys()
    jax.tree.map(np.testing.assert_array_equal, convert_student(source, params, batch_stats), weights)


def test_the_file_says_what_it_is(run: Path, exported: Path):
    metadata, manifest = read_metadata(exported), json.loads((exported.parent / "manifest.json").read_text())
    assert metadata["format"] == "pt"
    assert json.loads(metadata["classes"]) == manifest["classes"]
    assert metadata["backbone"] == manifest["backbone"] == "resnet_tiny"
    assert manifest["file"] == exported.name
    assert read_safetensors(exported)[0]["backbone.bn1.num_batches_tracked"].shape == ()


def test_families_without_names_say_so(run: Path, tmp_path: Path):
    trained = read_model(get_config(str(run)), str(run))
    config = trained.config.copy_and_resolve_references().unlock()
    config.model.backbone = next(iter(semivl.STUDENTS))
    with pytest.raises(InputError, match="use --format=stablehlo"):
        write(tmp_path, trained._replace(config=config))


def test_pytorch_loads_it_strictly(run: Path, exported: Path):
    torch = pytest.importorskip("torch", reason="needs the extra bench")
    from semiovs_jax.benchmarks.step.pytorch.deeplab import DeepLabV3Plus

    trained = read_model(get_config(str(run)), str(run))
    tiny = dataclasses.asdict(deeplab.STUDENTS["resnet_tiny"])
    del tiny["block"], tiny["stem_kernel"]
    network = DeepLabV3Plus(trained.model.dataset.num_classes, **tiny).eval()
    network.load_state_dict({name: torch.tensor(value) for name, value in read_safetensors(exported)[0].items()})
    image = np.random.default_rng(0).standard_normal((1, 33, 41, 3), np.float32)
    with torch.no_grad():
        expected = network(torch.tensor(image.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    apply = jax.jit(trained.model.function.apply, static_argnames="train")
    logits, _ = apply(trained.params, trained.batch_stats, image, train=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
