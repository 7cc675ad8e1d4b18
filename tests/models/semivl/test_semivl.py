import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from semiovs_jax.augment import IMAGENET_MEAN, IMAGENET_STD
from semiovs_jax.models import Functional, build_student
from semiovs_jax.models.clip.file import load_clip
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.models.semivl.params import convert_semivl_student, infer_semivl
from semiovs_jax.models.semivl.semivl import SemiVL, TextEmbedding
from semiovs_jax.models.semivl.student import STUDENTS
from semiovs_jax.train_state import count_parameters
from semiovs_jax.weights.keys import flatten
from tests.golden import Golden, golden_path
from tests.models.test_student import (
    assert_one_decoder_pass_for_all_variants,
    count_recomputed,
    dropout_masks,
    images,
    weights,
)

CONFIG = {"backbone": "clip_vit_shapes", "dtype": "float32", "remat": "none"}
CLASSES, CROP = 3, 32


def described(image_size: int = CROP, **changes: Any) -> SemiVL:
    """The student's structure alone."""
    return nnx.eval_shape(
        lambda: build_student({**CONFIG, **changes}, CLASSES, image_size=image_size, rngs=nnx.Rngs(0))
    )


@functools.cache
def student(**changes: Any) -> tuple[Any, Any, Any]:
    """A tiny student's jitted `apply`, random parameters and a random text embedding."""
    functional, params, stats = Functional.create(described(**changes))
    return jax.jit(functional.apply, static_argnames="train"), weights(params), weights(stats)


def masks() -> tuple[jax.Array, ...]:
    return dropout_masks(described().perturbed_channels, 2)


@functools.cache
def gradients(**changes: Any) -> tuple[Any, Any]:
    """Gradients of a loss on clean and perturbed logits, and the statistics after the forward."""
    apply, params, stats = student(**changes)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        (clean, perturbed), new_stats = apply(params, stats, images(2, CROP, CROP), train=True, channel_masks=masks())
        return (jnp.square(clean) + jnp.abs(perturbed)).mean(), new_stats

    return jax.jit(jax.grad(loss, has_aux=True))(params)


def test_published_number_of_parameters_of_the_backbone():
    module = nnx.eval_shape(
        lambda: build_student({**CONFIG, "backbone": "clip_vit_b16"}, 21, image_size=512, rngs=nnx.Rngs(0))
    )
    params = Functional.create(module)[1]
    width, hidden, embed_dim = 768, 3072, 512
    block = 4 * (width + 1) * width + 2 * 2 * width + (width + 1) * hidden + (hidden + 1) * width
    tokens = 16 * 16 * 3 * width + width + (1 + 32 * 32) * width
    assert count_parameters(params["backbone"]) == tokens + 12 * block + 2 * 2 * width + width * embed_dim
    published = Golden(golden_path("semiovs_semivl_step")).shapes
    head = sum(math.prod(shape) for name, shape in published.items() if name.startswith("decode_head."))
    assert count_parameters(params["head"]) == head
    assert module.perturbed_channels == (768, 768, 512)
    assert module.class_embedding_dim == 512


def test_golden_logits_of_the_whole_student():
    golden = Golden(golden_path("semiovs_semivl_step"))
    source = {name: value for name, value in golden.state_dict().items() if not name.startswith("clip_encoder.")}
    config = infer_semivl(source, out_layers=golden.meta["out_indices"][:-1])
    text = golden["text_decode"]
    crop = golden["it0_in_img_x"].shape[-1]
    module = nnx.eval_shape(lambda: SemiVL(config, len(text), image_size=crop, rngs=nnx.Rngs(0)))
    functional, params, stats = Functional.create(module)
    params, _ = convert_semivl_student(source, params, stats)
    x, weak = (
        jnp.asarray((golden[key].transpose(0, 2, 3, 1) / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD, jnp.float32)
        for key in ("it0_in_img_x", "it0_in_img_w")
    )
    # Masks are those of the joint batch [x, weak, weak OOD].
    kept = [
        np.unpackbits(golden[f"it0_in_fpmask{i}"], axis=1)[2:4, :channels].astype(np.float32)
        for i, channels in enumerate(module.perturbed_channels)
    ]
    masks = tuple(jnp.stack([jnp.ones(k.shape), 2 * k]) for k in kept)
    apply = jax.jit(functional.apply, static_argnames="train")
    plain, _ = apply(params, {"text": text}, x, train=True)
    (clean, perturbed), _ = apply(params, {"text": text}, weak, train=True, channel_masks=masks)
    for key, logits in (("it0_pred_x", plain), ("it0_pred_w", clean), ("it0_pred_w_fp", perturbed)):
        found = np.asarray(logits).transpose(0, 3, 1, 2)[:, :, 4::8, 4::8]
        noise = golden.meta["fp32_vs_fp64_maxabs"][f"{key}_s8"]
        np.testing.assert_allclose(found, golden[f"{key}_s8"], rtol=0, atol=20 * noise, err_msg=key)


def test_text_lies_among_the_statistics():
    module = described()
    assert isinstance(module.text, TextEmbedding)
    _, params, stats = Functional.create(module)
    assert params.keys() == {"backbone", "head"}
    assert stats.keys() == {"text"}

    @jax.jit
    def fresh():
        return build_student(CONFIG, CLASSES, image_size=CROP, rngs=nnx.Rngs(0)).text[...]

    np.testing.assert_array_equal(fresh(), np.zeros((CLASSES, 64)))


def test_without_text_all_classes_are_alike():
    apply, params, stats = student()
    x = images(2, CROP, CROP)
    blank, named = (apply(params, {"text": text}, x, train=False)[0] for text in (0 * stats["text"], stats["text"]))
    assert np.isfinite(blank).all()
    assert np.std(blank, axis=-1).max() < 1e-4 < 1e-2 < np.std(named, axis=-1).max()


def test_channel_masks():
    apply, params, stats = student()
    x = images(2, CROP, CROP)
    assert_one_decoder_pass_for_all_variants(apply, params, stats, x, masks())
    # Without features, pixels differ by biases and borders alone, and images do not differ.
    dropped, _ = apply(params, stats, x, train=False, channel_masks=tuple(0 * m[:1] for m in masks()))
    np.testing.assert_allclose(dropped[0, 0], dropped[0, 1], atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 24), (21, 50)])
def test_logits_of_any_image_pass_through_the_square_of_the_crop(shape):
    apply, params, stats = student()
    graph = nnx.graphdef(described())

    @jax.jit
    def expected(params, stats, x):
        module = nnx.merge(graph, params, stats)
        features = module.backbone(x, out_indices=(0, 1))
        own = module.head(features.levels, features.dense, module.text[...])
        square = resize_bilinear(own, (CROP, CROP), align_corners=False)
        return resize_bilinear(square, shape, align_corners=False)

    x = images(1, *shape)
    found, _ = apply(params, stats, x, train=False)
    assert found.shape == (1, *shape, CLASSES)
    np.testing.assert_allclose(found, expected(params, stats, x), atol=1e-4)


def test_true_sizes_are_refused():
    apply, params, stats = student()
    with pytest.raises(ValueError, match="by windows"):
        apply(params, stats, images(2, CROP, CROP), train=False, size=jnp.full((2, 2), CROP))
    assert SemiVL.fixed_size


@pytest.mark.parametrize(("image_size", "patches"), [(32, 16), (33, 25), (512, 4096)])
def test_the_position_table_covers_the_crop(image_size, patches):
    assert described(image_size).backbone.pos_embed.shape == (1 + patches, 64)


def test_gradients_reach_all_that_is_trained():
    groups = flatten(SemiVL.parameter_groups(student()[1]))
    found, stats = gradients()
    np.testing.assert_array_equal(stats["text"], student()[2]["text"])
    last = STUDENTS["clip_vit_shapes"].visual.num_layers - 1
    silent = tuple(f"backbone/layers/{last}/attention/{part}/" for part in ("query", "key"))
    for path, gradient in flatten(found).items():
        size = np.abs(np.asarray(gradient)).max()
        if path.startswith(silent):
            assert size == 0, path
        # A key's bias shifts all logits of a query alike, and normalization hides what is alike for a channel.
        elif groups[path] != "frozen" and not path.endswith("key/bias"):
            assert size > 1e-9, path


def test_parameter_groups():
    params = student()[1]
    groups = SemiVL.parameter_groups(params)
    assert jax.tree.structure(groups) == jax.tree.structure(params)
    for path, group in flatten(groups).items():
        trained = "/attention/" in path or path == "backbone/pos_embed"
        assert group == ("head" if path.startswith("head/") else "backbone" if trained else "frozen"), path


def test_remat_changes_nothing_but_memory():
    def recomputed(remat: str) -> int:
        apply, params, stats = student(remat=remat)
        return count_recomputed(functools.partial(apply.__wrapped__, train=True), params, stats, images(2, CROP, CROP))

    none, blocks, full = map(recomputed, ("none", "blocks", "full"))
    assert none == 0
    assert blocks > 0
    assert full == blocks + 1  # the head
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients()[0],
        gradients(remat="full")[0],
    )


def test_bfloat16_keeps_text_and_logits_in_float32():
    apply, params, stats = student(dtype="bfloat16")
    logits, new_stats = apply(params, stats, images(2, CROP, CROP), train=False)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((logits, new_stats))} == {"float32"}
    exact = np.asarray(student()[0](params, stats, images(2, CROP, CROP), train=False)[0])
    error = np.abs(np.asarray(logits) - exact).mean() / np.abs(exact).mean()
    assert 1e-4 < error < 0.1


def test_float64_stays_float64():
    apply, params, stats = student()
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, stats, images(2, CROP, CROP)))
        shapes = jax.eval_shape(functools.partial(apply, train=True, channel_masks=masks()), *double)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float64"}


def test_the_shipped_clip_has_the_tower_of_the_small_student():
    ours = STUDENTS["clip_vit_shapes"].visual
    theirs = load_clip("shapes_clip").config.visual
    assert dataclasses.replace(theirs, image_size=ours.image_size, eps=ours.eps, activation=ours.activation) == ours
