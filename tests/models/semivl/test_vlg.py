import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from semiovs_jax.models.convolution import convolve
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.models.semivl.vlg import GroupAspp, Upsample, VlgConfig, VlgHead, similarity
from semiovs_jax.weights.keys import flatten
from tests.golden import Golden, assert_matches, golden_path
from tests.models.test_student import weights
from tests.replays.vlg_head import replay

CONFIG = VlgConfig(
    channels=8,
    text_channels=8,
    num_layers=1,
    num_heads=2,
    pool=2,
    skip_channels=(3, 2),
    up_channels=(6, 4),
    rates=(1, 2),
    kernel_size=3,
)
WIDTHS, EMBED_DIM, CLASSES = (5, 7), 6, 4


def drawn(make):
    """A module with random weights, made without compiling its initializers."""
    graph, shapes = nnx.split(nnx.eval_shape(make), nnx.Param)
    return nnx.merge(graph, weights(nnx.to_pure_dict(shapes)))


def make_head(**settings):
    return drawn(lambda: VlgHead(CONFIG, WIDTHS, EMBED_DIM, rngs=nnx.Rngs(0), **settings))


def inputs(h=4, w=6, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return tuple(draw(2, h, w, c) for c in WIDTHS), draw(2, h, w, EMBED_DIM), draw(CLASSES, EMBED_DIM)


run = jax.jit(lambda module, *arguments: module(*arguments))


def test_golden():
    golden = Golden(golden_path("vlg_head"))
    assert_matches(golden, replay(golden, double=False))


def test_logits_lie_on_a_grid_four_times_as_fine():
    logits = run(make_head(), *inputs())
    assert logits.shape == (2, 16, 24, CLASSES)
    assert np.std(logits, axis=(1, 2)).min() > 1e-3


def test_the_order_of_the_classes_is_that_of_the_text():
    levels, dense, text = inputs()
    order = np.array([2, 0, 3, 1])
    head = make_head()
    expected = run(head, levels, dense, text)[..., order]
    np.testing.assert_allclose(run(head, levels, dense, text[order]), expected, atol=1e-5)


def test_lengths_of_embeddings_do_not_matter():
    levels, dense, text = inputs()
    head = make_head()
    longer = run(head, levels, 3 * dense, text * jnp.arange(1.0, CLASSES + 1)[:, None])
    np.testing.assert_allclose(longer, run(head, levels, dense, text), atol=1e-5)


def test_vectors_of_length_zero_have_similarity_and_gradient_zero():
    _, dense, text = inputs()
    dense = dense.at[0].set(0)
    np.testing.assert_array_equal(similarity(dense, text)[0], 0)
    np.testing.assert_array_equal(similarity(dense, 0 * text), 0)
    gradient = jax.grad(lambda text: similarity(dense, text)[1].sum())(text)
    assert np.isfinite(gradient).all()


def test_the_pyramid_projects_its_branches_side_by_side():
    aspp = drawn(lambda: GroupAspp(32, (1, 2), rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 4, 32)), jnp.float32)
    parts = [*[x] * 3, x.mean((1, 2), keepdims=True)]
    branches = [jax.nn.relu(norm(conv(y))) for conv, norm, y in zip(aspp.branches, aspp.norms, parts, strict=True)]
    branches[-1] = jnp.broadcast_to(branches[-1], x.shape)
    projected = jnp.concatenate(branches, axis=-1) @ aspp.project[0, 0]
    np.testing.assert_allclose(aspp(x), x + jax.nn.relu(aspp.project_norm(projected)), atol=1e-5)


def test_upsampling_convolves_planes_and_level_side_by_side():
    up = drawn(lambda: Upsample(6, 4, 2, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 5, 6)), jnp.float32)
    skip = jnp.asarray(rng.standard_normal((2, 4, 5, 2)), jnp.float32)
    fine = resize_bilinear(skip, (8, 10), align_corners=True)
    found = up(x, skip)
    for index in range(3):
        y = convolve(jnp.concatenate([up.up(x[:, index]), fine], axis=-1), up.conv1[...])
        y = jax.nn.relu(up.norm1(y))
        y = jax.nn.relu(up.norm2(convolve(y, up.conv2[...])))
        np.testing.assert_allclose(found[:, index], y, atol=2e-5)


def test_a_grid_below_the_pooling_window_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 6\) patches"):
        make_head()(*inputs(h=1))


def test_the_number_of_levels_is_free():
    config = dataclasses.replace(CONFIG, skip_channels=(3,), up_channels=(6,))
    head = drawn(lambda: VlgHead(config, WIDTHS[:1], EMBED_DIM, rngs=nnx.Rngs(0)))
    levels, dense, text = inputs()
    assert run(head, levels[:1], dense, text).shape == (2, 8, 12, CLASSES)


def test_bfloat16_is_near_and_returns_wide_logits():
    levels, dense, text = inputs()
    narrow = run(make_head(dtype=jnp.bfloat16), tuple(level.astype(jnp.bfloat16) for level in levels), dense, text)
    exact = np.asarray(run(make_head(), levels, dense, text))
    assert narrow.dtype == jnp.float32
    error = np.abs(np.asarray(narrow) - exact).mean() / np.abs(exact).mean()
    assert 1e-5 < error < 0.05


def test_published_channels():
    # In the reference's order: the deepest level first.
    head = nnx.eval_shape(lambda: VlgHead(VlgConfig(), (768, 768), 512, rngs=nnx.Rngs(0)))
    shapes = {path: leaf.shape for path, leaf in flatten(nnx.to_pure_dict(nnx.state(head, nnx.Param))).items()}
    assert shapes["skips/0/kernel"] == (3, 3, 768, 32)
    assert shapes["ups/0/up/kernel"] == (2, 2, 128, 96)
    assert shapes["ups/1/conv1"] == (3, 3, 64, 32)
    assert shapes["layers/1/mlp/expand/kernel"] == (256, 512)
