import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from semiovs_jax.models.clip.vit import ClipVit, ClipVitConfig, cubic_matrix, resize_positions
from tests.golden import Golden, assert_matches, golden_path
from tests.replays.maskclip_vit import replay

CONFIG = ClipVitConfig(patch_size=4, width=16, num_layers=3, num_heads=2, embed_dim=6, image_size=(16, 16))


def make(dtype=None):
    """A tower with random weights, made without compiling its initializers."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ClipVit(CONFIG, dtype=dtype, rngs=nnx.Rngs(0))), nnx.Param)
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) * (1 if len(leaf.shape) == 1 else 0.3), jnp.float32)

    return nnx.merge(graph, jax.tree.map(draw, nnx.to_pure_dict(shapes)))


@pytest.fixture(scope="module")
def tower():
    return make()


@functools.partial(jax.jit, static_argnums=2)
def run(module, image, out_indices=()):
    return module(image, out_indices=out_indices)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, *shape, 3)), jnp.float32)


def test_golden():
    golden = Golden(golden_path("maskclip_vit"))
    assert_matches(golden, replay(golden, double=False))


@pytest.mark.parametrize("shape", [(16, 16), (13, 22), (4, 3)])
def test_shapes_and_unit_embeddings(tower, shape):
    features = run(tower, images(*shape), (0, 2))
    grid = tuple(-(-side // 4) for side in shape)
    assert [level.shape for level in features.levels] == [(2, *grid, 16)] * 2
    assert features.dense.shape == (2, *grid, 6)
    assert features.pooled.shape == (2, 6)
    for embedding in (features.dense, features.pooled):
        np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1, atol=1e-6)


def test_sides_are_padded_with_zeros_at_bottom_and_right(tower):
    image = images(13, 14)
    padded = jnp.pad(image, ((0, 0), (0, 3), (0, 2), (0, 0)))
    np.testing.assert_allclose(run(tower, image).dense, run(tower, padded).dense, atol=1e-6)


def test_the_value_path_of_the_first_block_sees_one_patch_only(tower):
    image = images(16, 16)
    changed = image.at[:, :4, :4].add(1.0)
    before, after = (run(tower, x, (0,)).levels[0] for x in (image, changed))
    differs = np.abs(np.asarray(before - after)).max(axis=(0, 3)) > 1e-5
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = True
    np.testing.assert_array_equal(differs, expected)


def test_a_grid_of_equal_count_keeps_the_layout_of_the_table(tower):
    table = tower.pos_embed[...]
    np.testing.assert_array_equal(resize_positions(table, (4, 4), (4, 4)), table)
    np.testing.assert_array_equal(resize_positions(table, (4, 4), (2, 8)), table)
    resized = resize_positions(table, (4, 4), (6, 5))
    assert resized.shape == (31, 16)
    np.testing.assert_array_equal(resized[0], table[0])


def test_cubic_matrix_reproduces_constants_everywhere_and_lines_inside():
    for source, target in ((14, 32), (32, 7), (5, 5), (1, 4)):
        np.testing.assert_allclose(cubic_matrix(source, target).sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(cubic_matrix(7, 7), np.eye(7), atol=1e-12)
    position = (np.arange(40) + 0.5) / 2 - 0.5
    inner = (position >= 1) & (position <= 17)
    np.testing.assert_allclose((cubic_matrix(20, 40) @ np.arange(20.0))[inner], position[inner], atol=0.1)
    # Half a pixel between four samples: torch's weights for a = -0.75.
    np.testing.assert_allclose(cubic_matrix(4, 1)[0], [-0.09375, 0.59375, 0.59375, -0.09375])


def test_float64_stays_float64(tower):
    graph, params = nnx.split(tower, nnx.Param)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), nnx.to_pure_dict(params))
        features = run(nnx.merge(graph, wide), jnp.asarray(images(16, 20), jnp.float64), (1,))
    assert {a.dtype for a in jax.tree.leaves(features)} == {jnp.dtype(jnp.float64)}
    np.testing.assert_allclose(features.dense, run(tower, images(16, 20)).dense, atol=1e-5)


def test_bfloat16_is_near_and_returns_wide_embeddings(tower):
    features = run(make(jnp.bfloat16), images(16, 16), (1,))
    assert features.levels[0].dtype == jnp.bfloat16
    assert features.dense.dtype == jnp.float32
    np.testing.assert_allclose(features.dense, run(tower, images(16, 16)).dense, atol=0.05)


def test_dense_alone_does_not_pay_for_the_last_attention(tower):
    def flops(read):
        analysis = jax.jit(lambda x: read(tower(x))).lower(images(16, 16)).compile().cost_analysis()
        return analysis["flops"]

    block = 2 * 17 * 2 * (4 * 16 * 16 + 2 * 16 * 64)  # projections and MLP on 17 tokens of 2 images
    assert flops(lambda f: (f.dense, f.pooled)) - flops(lambda f: f.dense) > 0.9 * block
