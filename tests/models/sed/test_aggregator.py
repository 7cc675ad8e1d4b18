from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from semiovs_jax.benchmarks.labeling.models import architecture, flops, make_labeler, random_text
from semiovs_jax.models.convnext import depthwise_conv
from semiovs_jax.models.sed.aggregator import SedAggregator, correlate, unit
from semiovs_jax.models.sed.decoder import multiply_pixelwise
from semiovs_jax.models.upsampling import ConvTranspose2x2, CornerConv
from semiovs_jax.ovs.vocabulary import load_vocabulary
from tests.ovs import tiny_sed

CONFIG = tiny_sed.CONFIG.aggregator
CLASSES = 7


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _inputs(images=2, h=4, w=3, seed=0):
    rng = np.random.default_rng(seed)
    levels = tuple(
        jnp.asarray(rng.standard_normal((images, s * h, s * w, c)), jnp.float32)
        for s, c in zip((2, 4, 8), CONFIG.level_widths, strict=True)
    )
    dense = jnp.asarray(rng.standard_normal((images, h, w, 8)), jnp.float32)
    return dense, unit(jnp.asarray(rng.standard_normal((CLASSES, CONFIG.num_templates, 8)), jnp.float32)), levels


@pytest.fixture(scope="module")
def aggregator():
    """Random weights with gamma 1: a layer scale of 1e-6 would hide the blocks."""
    module = SedAggregator(CONFIG, rngs=nnx.Rngs(0))
    for decoder in module.decoders:
        decoder.block.gamma[...] = jnp.ones_like(decoder.block.gamma[...])
    return module


def _run(aggregator, inputs, **settings):
    graph, params = nnx.split(aggregator)
    return jax.jit(lambda p, dense, text, levels: nnx.merge(graph, p)(dense, text, levels, **settings))(params, *inputs)


@pytest.fixture(scope="module")
def exact(aggregator):
    return {pooling: _run(aggregator, _inputs(), pooling=pooling) for pooling in (1, 2)}


def test_a_corner_convolution_is_its_two_convolutions():
    rng = np.random.default_rng(0)
    up = ConvTranspose2x2(6, 5, rngs=nnx.Rngs(0))
    up.bias[...] = jnp.asarray(rng.standard_normal(5), jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 6)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 5, 7)), jnp.float32)
    corner = CornerConv.compose(up, kernel, (3, 4))
    np.testing.assert_allclose(corner(x) + corner.bias, _conv(up(x), kernel), atol=2e-5)


def test_a_transposed_convolution_makes_four_pixels_of_one():
    up = ConvTranspose2x2(3, 2, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 2, 3)), jnp.float32)
    fine = np.asarray(up(x))
    for row, column in np.ndindex(4, 4):
        expected = x[0, row // 2, column // 2] @ up.kernel[row % 2, column % 2]
        np.testing.assert_allclose(fine[0, row, column], expected, atol=1e-6)


def test_shifted_products_are_a_grouped_convolution():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((5, 5, 1, 4)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    np.testing.assert_allclose(jax.jit(depthwise_conv)(x, kernel), expected, atol=1e-5)


def test_shifted_products_in_bfloat16_are_rounded_once():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 6, 5, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((5, 5, 1, 4)), jnp.bfloat16)
    exact = depthwise_conv(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_array_equal(jax.jit(depthwise_conv)(x, kernel), exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(("platform", "size", "convolves"), [("cuda", 7, True), ("cuda", 9, False), ("tpu", 9, True)])
def test_each_platform_has_its_form(platform, size, convolves):
    traced = jax.jit(depthwise_conv).trace(jnp.ones((1, 6, 5, 4)), jnp.ones((size, size, 1, 4)))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in program) == convolves


PRODUCTS = ["nthwac,nthwad->nhwacd", "nthwac,nhwacd->nthwad", "nthwac,nhwac->nthwa"]


def _factors(axes):
    rng = np.random.default_rng(0)
    sizes = dict(zip("nthwacd", (2, 5, 4, 3, 2, 6, 7), strict=True))
    terms = axes.split("->")[0].split(",")
    return [jnp.asarray(rng.standard_normal([sizes[axis] for axis in term]), jnp.float32) for term in terms]


@pytest.mark.parametrize("axes", PRODUCTS)
def test_products_of_the_class_attention_are_the_same_on_a_gpu(axes):
    with mock.patch.object(jax.lax, "platform_dependent", lambda *factors, cuda, **_: cuda(*factors)):
        found = multiply_pixelwise(axes, *_factors(axes))
    np.testing.assert_allclose(found, jnp.einsum(axes, *_factors(axes)), atol=1e-5)


@pytest.mark.parametrize(("platform", "is_product"), [("cuda", False), ("tpu", True)])
@pytest.mark.parametrize("axes", PRODUCTS)
def test_the_class_attention_has_no_matrix_products_on_a_gpu(platform, is_product, axes):
    traced = jax.jit(lambda x, y: multiply_pixelwise(axes, x, y)).trace(*_factors(axes))
    assert ("stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()) == is_product


def test_correlation_is_the_cosine_whatever_the_lengths():
    dense, text, _ = _inputs(1)
    cosine = correlate(5 * dense, text)
    assert cosine.shape == (1, CLASSES, 4, 3, CONFIG.num_templates)
    vector = dense[0, 1, 2]
    np.testing.assert_allclose(cosine[0, 4, 1, 2, 0], vector @ text[4, 0] / jnp.linalg.norm(vector), rtol=1e-5)


@pytest.mark.parametrize(("class_chunk", "pooling"), [(1, 1), (3, 1), (100, 1), (3, 2)])
def test_chunks_of_classes_change_nothing(aggregator, exact, class_chunk, pooling):
    whole = exact[pooling]
    chunked = _run(aggregator, _inputs(), pooling=pooling, class_chunk=class_chunk)
    assert whole.mask.shape == (2, CLASSES, 32, 24)
    assert [logits.shape[1:] for logits in whole.auxiliary] == [(CLASSES, 4 * s, 3 * s) for s in (1, 2, 4)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), chunked, whole)


def test_images_of_a_batch_do_not_see_each_other(aggregator):
    dense, text, levels = _inputs()
    settings = {"top_k": 1, "class_chunk": 2}
    together = _run(aggregator, (dense, text, levels), **settings).mask
    one = (dense[1:], text, tuple(level[1:] for level in levels))
    np.testing.assert_allclose(together[1:], _run(aggregator, one, **settings).mask, atol=5e-5)


def test_pruning_no_class_is_the_exact_path(aggregator, exact):
    pruned = _run(aggregator, _inputs(), top_k=CLASSES, class_chunk=3).mask
    np.testing.assert_allclose(pruned, exact[1].mask, atol=5e-5)


def test_pruned_classes_are_impossible_and_kept_ones_are_the_best_somewhere(aggregator):
    inputs = _inputs(images=1, h=2, w=2)
    best = np.argmax(_run(aggregator, inputs).auxiliary[0][0], axis=0)
    pruned = np.asarray(_run(aggregator, inputs, top_k=1, class_chunk=2).mask[0])
    kept = {i for i, plane in enumerate(pruned) if np.isfinite(plane).all()}
    dropped = {i for i, plane in enumerate(pruned) if np.isneginf(plane).all()}
    assert kept | dropped == set(range(CLASSES))
    assert kept
    assert kept <= set(np.unique(best))


def test_auxiliary_heads_teach_only_themselves(aggregator):
    graph, params = nnx.split(aggregator)
    dense, text, levels = _inputs()

    def loss(params):
        return sum(jnp.sum(logits) for logits in nnx.merge(graph, params)(dense, text, levels, pooling=2).auxiliary)

    gradient = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
    heads = gradient.pop("heads")
    assert all(np.any(heads[i]["kernel"]) for i in range(3))
    assert not any(np.any(leaf) for leaf in [*jax.tree.leaves(gradient), *jax.tree.leaves(heads[3])])


def test_the_mask_teaches_everything_else(aggregator):
    graph, params = nnx.split(aggregator)
    dense, text, levels = _inputs()

    def loss(params):
        module = nnx.merge(graph, params)
        return jnp.sum(jnp.square(module(dense, text, levels, pooling=2).mask))

    gradient = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
    heads = gradient.pop("heads")
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in jax.tree.leaves((gradient, heads[3])))


@pytest.mark.slow
def test_the_exact_path_costs_no_more_than_the_analytic_count():
    """The reference's operations count to 1.02 TFLOP at 768 px with 171 concepts."""
    base = architecture("sed-base", load_vocabulary("voc21"))
    text = random_text(base)
    assert len(text) == 171
    assert flops(make_labeler(base, text, None, image_size=768)) <= 1.02e12
