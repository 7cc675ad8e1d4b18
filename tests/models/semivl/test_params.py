import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from semiovs_jax.convert import main
from semiovs_jax.models import Functional
from semiovs_jax.models.clip.file import load_visual
from semiovs_jax.models.clip.vit import ClipVitConfig, cubic_matrix
from semiovs_jax.models.semivl.file import load_semivl
from semiovs_jax.models.semivl.params import (
    STUDENT_RULES,
    convert_label_maker,
    convert_semivl_student,
    infer_semivl,
    load_semivl_backbone,
)
from semiovs_jax.models.semivl.semivl import SemiVL, SemiVLConfig
from semiovs_jax.models.semivl.vlg import VlgConfig
from semiovs_jax.weights.files import load_weights, save_weights
from semiovs_jax.weights.keys import WeightMismatchError, find_rule, flatten
from tests.golden import Golden, golden_path
from tests.ovs import tiny_clip

TINY = SemiVLConfig(
    ClipVitConfig(
        patch_size=4,
        width=8,
        num_layers=2,
        num_heads=1,
        mlp_ratio=3,
        embed_dim=6,
        image_size=(8, 8),
        eps=1e-6,
        activation="gelu",
    ),
    out_layers=(0, 1),
    head=VlgConfig(channels=4, text_channels=8, num_layers=1, skip_channels=(2, 1), up_channels=(5, 3), kernel_size=3),
)


def norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def block(name, width, hidden):
    return {
        **norm(f"{name}.ln1", width),
        **norm(f"{name}.ln2", width),
        f"{name}.attn.attn.in_proj_weight": (3 * width, width),
        f"{name}.attn.attn.in_proj_bias": (3 * width,),
        f"{name}.attn.attn.out_proj.weight": (width, width),
        f"{name}.attn.attn.out_proj.bias": (width,),
        f"{name}.ffn.layers.0.0.weight": (hidden, width),
        f"{name}.ffn.layers.0.0.bias": (hidden,),
        f"{name}.ffn.layers.1.weight": (width, hidden),
        f"{name}.ffn.layers.1.bias": (width,),
    }


def tower(side=2, layers=2):
    """Shapes of CLIP's image tower by SemiVL's names, as a student has it; the position table is side x side."""
    shapes = {
        "cls_token": (1, 1, 8),
        "pos_embed": (1, 1 + side * side, 8),
        "patch_embed.projection.weight": (8, 3, 4, 4),
        **norm("ln0", 8),
        **norm("ln1", 8),
        "proj.weight": (6, 8, 1, 1),
    }
    for i in range(layers):
        shapes |= block(f"layers.{i}", 8, 24)
    return shapes


def head():
    shapes = {"conv1.weight": (4, 1, 3, 3), "conv1.bias": (4,)}
    for i, size in enumerate((1, 3, 3, 3)):
        shapes |= {f"aspp.aspp_convs.{i}.0.weight": (4, 4, size, size), **norm(f"aspp.aspp_convs.{i}.1", 4)}
    shapes |= {"aspp.aspp_convs.4.gap.1.weight": (4, 4, 1, 1), **norm("aspp.aspp_convs.4.gap.2", 4)}
    shapes |= {"aspp.project.0.weight": (4, 20, 1, 1), **norm("aspp.project.1", 4)}
    shapes |= block("layers.0.transformer", 12, 16)
    shapes |= {"text_proj.0.weight": (8, 6), "text_proj.0.bias": (8,)}
    for i, (before, after, skip) in enumerate(((4, 5, 2), (5, 3, 1))):
        shapes |= {
            f"skip_proj.{i}.0.weight": (skip, 8, 3, 3),
            f"skip_proj.{i}.0.bias": (skip,),
            f"up{i + 1}.up.weight": (before, before - skip, 2, 2),
            f"up{i + 1}.up.bias": (before - skip,),
            f"up{i + 1}.conv.0.weight": (after, before, 3, 3),
            **norm(f"up{i + 1}.conv.1", after),
            f"up{i + 1}.conv.3.weight": (after, after, 3, 3),
            **norm(f"up{i + 1}.conv.4", after),
        }
    return shapes | {"head.weight": (1, 3, 3, 3), "head.bias": (1,)}


def tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def published(side=2, layers=2):
    """A state dict with the published names and the widths of TINY; the label maker's table is 3 x 3."""
    shapes = {f"backbone.{name}": shape for name, shape in tower(side, layers).items()}
    shapes |= {f"decode_head.{name}": shape for name, shape in head().items()}
    return tensors(shapes | {f"clip_encoder.{name}": shape for name, shape in tower(side=3).items()})


def fresh(config=TINY, image_size=8):
    student = nnx.eval_shape(lambda: SemiVL(config, 5, image_size=image_size, rngs=nnx.Rngs(0)))
    _, params, stats = Functional.create(student)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), (params, stats))


def visual_file(tmp_path, side=2, prefix="", **changes):
    """A converted image tower as SemiVL's file has it: two axes of the projection."""
    source = {**tensors(tower(side)), **changes}
    source["proj.weight"] = source["proj.weight"][:, :, 0, 0]
    save_file({prefix + name: value for name, value in source.items()}, tmp_path / "clip2mmseg.safetensors")
    out = tmp_path / "visual.safetensors"
    return str(out), main([str(tmp_path / "clip2mmseg.safetensors"), str(out), "--kind=clip_visual"])


def test_architecture_is_read_off_shapes():
    assert infer_semivl(published(), out_layers=(0, 1)) == TINY


def test_a_state_dict_fills_a_student_exactly():
    source, (params, stats) = published(), fresh()
    filled, same = convert_semivl_student(source, params, stats)
    assert jax.tree.structure(filled) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, same, stats)
    found = flatten(filled)
    packed = source["backbone.layers.1.attn.attn.in_proj_weight"]
    np.testing.assert_array_equal(found["backbone/layers/1/attention/key/kernel"], packed[8:16].T)
    packed = source["decode_head.layers.0.transformer.attn.attn.in_proj_bias"]
    np.testing.assert_array_equal(found["head/layers/0/attention/value/bias"], packed[24:])
    expected = source["decode_head.up1.up.weight"].transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(found["head/ups/0/up/kernel"], expected)
    expected = source["decode_head.aspp.aspp_convs.4.gap.1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found["head/aspp/branches/4/kernel"], expected)
    np.testing.assert_array_equal(found["backbone/pos_embed"], source["backbone.pos_embed"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.up2.conv.4.bias": None}, "without a source:\n    head/ups/1/norm2/bias"),
        ({"backbone.ln1.weight": None}, "without a source:\n    backbone/final_norm/scale"),
        ({"decode_head.conv_seg.weight": np.zeros((5, 4, 1, 1))}, "no rule matches:\n    decode_head.conv_seg.weight"),
        ({"auxiliary.weight": np.zeros(2)}, "no rule matches:\n    auxiliary.weight"),
        ({"decode_head.skip_proj.1.0.weight": np.zeros((2, 8, 3, 3))}, r"has shape \(3, 3, 8, 2\), expected"),
        ({"decode_head.up3.conv.1.bias": np.zeros(2)}, "not in the model:\n    decode_head.up3.conv.1.bias"),
    ],
)
def test_other_state_dicts_are_refused(change, message):
    source = {k: v for k, v in (published() | change).items() if v is not None}
    with pytest.raises(WeightMismatchError, match=message):
        convert_semivl_student(source, *fresh())


def test_the_command_writes_a_student_that_is_read_back(tmp_path, capsys):
    source, out = published(side=4, layers=5), tmp_path / "student.safetensors"
    save_file({f"module.{name}": value for name, value in source.items()}, tmp_path / "best.safetensors")
    assert main([str(tmp_path / "best.safetensors"), str(out), "--kind=semivl"]) == 0
    assert "dropped clip_encoder.layers.0.attn.attn.in_proj_weight\n" in capsys.readouterr().out
    assert load_weights(out)[1].keys() == {"kind", "config", "source", "source_sha256", "sha256"}

    config, found = load_semivl(str(out))
    visual = dataclasses.replace(TINY.visual, num_layers=5, image_size=(16, 16))
    assert config == dataclasses.replace(TINY, visual=visual, out_layers=(0, 4))
    shapes = nnx.eval_shape(lambda: SemiVL(config, 5, image_size=16, rngs=nnx.Rngs(0)))
    functional, params, stats = Functional.create(shapes)
    expected, _ = convert_semivl_student(source, params, stats)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    logits, _ = jax.eval_shape(lambda p, s, x: functional.apply(p, s, x, train=False), found, stats, image)
    assert logits.shape == (1, 16, 16, 5)


def test_the_command_refuses_a_student_with_other_tensors(tmp_path, capsys):
    save_file(published() | {"conv_encoder.weight": np.zeros(2)}, tmp_path / "best.safetensors")
    assert main([str(tmp_path / "best.safetensors"), str(tmp_path / "out"), "--kind=semivl"]) == 2
    assert re.search(r"no rule matches:\n    conv_encoder\.weight", capsys.readouterr().err)


def test_what_is_no_student_is_named():
    source = {name: value for name, value in published().items() if not name.startswith("decode_head.")}
    with pytest.raises(InputError, match=r"a\.pth: the head lacks embed/kernel"):
        infer_semivl(source, name="a.pth")
    with pytest.raises(InputError, match=r"a\.pth: no CLIP vision transformer"):
        infer_semivl({"head.weight": np.zeros(1)}, name="a.pth")


def test_the_label_maker_is_a_tower_of_its_own():
    source = published()
    config, params = convert_label_maker(source)
    assert config == dataclasses.replace(TINY.visual, image_size=(12, 12))
    np.testing.assert_array_equal(params["pos_embed"], source["clip_encoder.pos_embed"][0])
    del source["clip_encoder.ln0.bias"]
    with pytest.raises(WeightMismatchError, match="pre_norm/bias"):
        convert_label_maker(source)


def test_golden_says_what_is_trained():
    golden = Golden(golden_path("semiovs_semivl_step"))
    rates: dict[str, float] = {}
    for name, rate, _ in golden.meta["trainable"]:
        parts = [name.replace("in_proj_", f"{part}_proj.") for part in "qkv"] if "in_proj_" in name else [name]
        rates |= {find_rule(part, STUDENT_RULES)[1]: rate for part in parts}
    source = {name: np.broadcast_to(np.float32(0), shape) for name, shape in golden.shapes.items()}
    config = infer_semivl(source, out_layers=golden.meta["out_indices"][:-1])
    crop = golden.meta["config"]["crop_size"]
    assert config.visual.image_size == (crop, crop)
    assert (config.head, config.visual.num_heads) == (VlgConfig(), 12)
    student = nnx.eval_shape(lambda: SemiVL(config, 21, image_size=crop, rngs=nnx.Rngs(0)))
    _, params, _ = Functional.create(student)
    groups = flatten(SemiVL.parameter_groups(params))
    assert {path for path, group in groups.items() if group != "frozen"} == rates.keys()
    by_rate = {rate: {groups[path] for path in rates if rates[path] == rate} for rate in set(rates.values())}
    assert [by_rate[rate] for rate in sorted(by_rate)] == [{"backbone"}, {"head"}]
    names = {name for name in golden.shapes if not name.startswith("clip_encoder.")}
    assert sum(math.prod(golden.shapes[name]) for name in names) == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_command_writes_a_tower_that_is_read_back(tmp_path, prefix):
    path, status = visual_file(tmp_path, side=3, prefix=prefix)
    assert status == 0
    config, params = load_visual(path)
    assert config == dataclasses.replace(TINY.visual, image_size=(12, 12))
    np.testing.assert_array_equal(params["projection"]["kernel"], tensors(tower(3))["proj.weight"][:, :, 0, 0].T)


def test_the_command_refuses_other_names(tmp_path, capsys):
    save_file({"visual.conv1.weight": np.zeros((8, 3, 4, 4), np.float32)}, tmp_path / "openai.safetensors")
    assert main([str(tmp_path / "openai.safetensors"), str(tmp_path / "out"), "--kind=clip_visual"]) == 2
    assert re.search(r"openai\.safetensors: .*openai.*--kind=clip", capsys.readouterr().err)


def test_a_backbone_fills_a_student_and_leaves_its_head(tmp_path):
    path, _ = visual_file(tmp_path)
    params, _ = fresh()
    filled = load_semivl_backbone(path, params)
    assert jax.tree.structure(filled) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, filled["head"], params["head"])
    jax.tree.map(np.testing.assert_array_equal, filled["backbone"], load_visual(path)[1])


def test_the_position_table_is_resized_on_loading(tmp_path):
    path, _ = visual_file(tmp_path, side=3)
    filled = load_semivl_backbone(path, fresh(image_size=18)[0])
    table, found = load_visual(path)[1]["pos_embed"], filled["backbone"]["pos_embed"]
    np.testing.assert_array_equal(found[0], table[0])
    matrix = cubic_matrix(3, 5)
    expected = np.einsum("yi,xj,ijd->yxd", matrix, matrix, table[1:].reshape(3, 3, 8)).reshape(25, 8)
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)


def test_a_whole_clip_gives_a_backbone(tmp_path):
    path = tiny_clip.write_clip(tmp_path / "clip.safetensors")
    visual = dataclasses.replace(tiny_clip.CONFIG.visual, eps=1e-6, activation="gelu")
    config = dataclasses.replace(TINY, visual=visual)
    filled = load_semivl_backbone(path, fresh(config, image_size=32)[0])
    expected = tiny_clip.towers()["visual"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, jnp.asarray(b)), filled["backbone"], expected)


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        ({"num_layers": 1}, "not in the model:\n    layers/1"),
        ({"num_layers": 3}, "without a source:\n    layers/2"),
        ({"width": 16}, "wrong shapes"),
        ({"patch_size": 2}, "wrong shapes:\n    patch_embed"),
    ],
)
def test_a_backbone_of_other_widths_is_refused(tmp_path, visual, message):
    path, _ = visual_file(tmp_path)
    config = dataclasses.replace(TINY, visual=dataclasses.replace(TINY.visual, **visual), out_layers=(0, 0))
    with pytest.raises(WeightMismatchError, match=rf"(?s)visual\.safetensors.*{message}"):
        load_semivl_backbone(path, fresh(config)[0])


def test_weights_of_another_kind_are_refused(tmp_path):
    save_weights(tmp_path / "resnet", {"a": np.zeros(1)}, {"kind": "resnet"})
    with pytest.raises(InputError, match=r"kind 'resnet'.*--kind=clip_visual"):
        load_semivl_backbone(str(tmp_path / "resnet"), fresh()[0])
