"""Windows on padded batches are the windows of each image alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax.evaluation.sliding import sliding_logits, windows_along
from semiovs_jax.models.layers import zero_outside
from semiovs_jax.runtime.hlo import find_collectives, parse_instructions
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh
from tests.golden import Golden, assert_matches, golden_path
from tests.replays.zegclip_sliding_window import replay

CLASSES = 5
PIXEL = np.random.default_rng(0).normal(size=(3, CLASSES))
PLACE = np.random.default_rng(1).normal(size=(2, CLASSES))


def predict(x: jax.Array, size: jax.Array | None = None) -> jax.Array:
    """A model, linear in the image, whose logits depend on the mean of the window and on the position in it."""
    area = x.shape[1] * x.shape[2] if size is None else size.prod(1)[:, None, None, None]
    mean = zero_outside(x, size).sum((1, 2), keepdims=True) / area
    row, column = jnp.arange(x.shape[1])[:, None] / 9, jnp.arange(x.shape[2]) / 7
    place = jnp.stack(jnp.broadcast_arrays(row, column), axis=-1)
    return (x - mean) @ jnp.asarray(PIXEL, x.dtype) + place @ jnp.asarray(PLACE, x.dtype)


def predict_numpy(x: np.ndarray) -> np.ndarray:
    place = np.stack(np.meshgrid(np.arange(x.shape[0]) / 9, np.arange(x.shape[1]) / 7, indexing="ij"), axis=-1)
    return (x - x.mean((0, 1))) @ PIXEL + place @ PLACE


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis, one after the other until the end is reached."""
    found = [0]
    while found[-1] + window < length:
        found.append(min(found[-1] + stride, length - window))
    return found


def sliding_numpy(predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray, window: int, stride: int):
    """Mean logits over the windows of one unpadded image [H, W, C]."""
    height, width, _ = image.shape
    total, count = 0, np.zeros((height, width, 1))
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            place = slice(top, top + window), slice(left, left + window)
            logits = predict(image[place])
            total = np.zeros((height, width, logits.shape[-1])) + total
            total[place] += logits
            count[place] += 1
    assert count.min() > 0
    return total / count


def images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(count * height + width).normal(size=(count, height, width, 3)).astype(np.float32)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    """Window, stride, padded length, and true lengths of images that hold a window."""
    window, padded = draw(st.sampled_from([(1, 30), (7, 7), (16, 40), (33, 150)]))  # shapes compile
    stride = draw(st.sampled_from(sorted({1, -(-window // 3), -(-2 * window // 3), window})))
    return window, stride, padded, draw(st.lists(st.integers(window, padded), min_size=3, max_size=3))


_windows_along = jax.jit(windows_along, static_argnums=(1, 2, 3))


@settings(deadline=None, max_examples=100)
@given(layouts())
def test_shares_of_every_pixel_add_up_to_one(layout):
    window, stride, padded, lengths = layout
    start, share = map(np.asarray, _windows_along(np.array(lengths, np.int32), padded, window, stride))
    for image, length in enumerate(lengths):
        expected = starts(length, window, stride)
        used = share[:, image].any(-1)
        assert start[used, image].tolist() == expected
        assert start[:, image].min() >= 0
        assert start[:, image].max() + window <= length
        np.testing.assert_allclose(share[:, image, :length].sum(0), 1, atol=1e-6)
        assert not share[:, image, length:].any()
        for first, shares in zip(start[used, image], share[used, image], strict=True):
            assert np.flatnonzero(shares).tolist() == list(range(first, first + window))


@pytest.mark.parametrize(
    ("window", "stride", "shape"), [(8, 3, (21, 12)), (12, 10, (12, 40)), (7, 7, (30, 23)), (16, 13, (32, 33))]
)
def test_a_padded_batch_has_the_logits_of_each_image_alone(window, stride, shape):
    x = images(2, *shape)
    run = jax.jit(lambda size: sliding_logits(predict, jnp.asarray(x), window=window, stride=stride, size=size))

    @settings(deadline=None, max_examples=25)
    @given(st.data())
    def check(data):
        sizes = [tuple(data.draw(st.integers(window, length)) for length in shape) for _ in x]
        found = np.asarray(run(np.array(sizes, np.int32)))
        for i, (height, width) in enumerate(sizes):
            expected = sliding_numpy(predict_numpy, x[i, :height, :width], window, stride)
            np.testing.assert_allclose(found[i, :height, :width], expected, atol=1e-4)
            assert not found[i, height:].any()
            assert not found[i, :, width:].any()

    check()


@pytest.mark.parametrize("shape", [(9, 30), (30, 9), (9, 8), (12, 12), (13, 24)])
def test_sides_shorter_than_the_window_have_a_smaller_one(shape):
    x = images(1, *shape)
    found = sliding_logits(predict, jnp.asarray(x), window=12, stride=10)
    np.testing.assert_allclose(found[0], sliding_numpy(predict_numpy, x[0], 12, 10), atol=1e-4)


def test_the_model_is_traced_for_one_window_shape_however_many_there_are():
    seen = set()

    def model(x: jax.Array) -> jax.Array:
        seen.add(x.shape)
        return predict(x)

    sliding_logits(model, jnp.asarray(images(2, 100, 70)), window=16, stride=8)
    assert seen == {(2, 16, 16, 3)}


def test_images_stay_on_their_devices():
    mesh = make_mesh()
    x = jax.device_put(images(8, 30, 41), batch_sharding(mesh))
    size = jax.device_put(np.array([[30 - i, 41 - 2 * i] for i in range(8)], np.int32), batch_sharding(mesh))

    @jax.jit
    def run(x: jax.Array, size: jax.Array) -> jax.Array:
        return sliding_logits(predict, x, window=16, stride=12, size=size)

    assert not find_collectives(parse_instructions(run.lower(x, size).compile().as_text()))
    found = run(x, size)
    assert found.sharding.is_equivalent_to(batch_sharding(mesh), found.ndim)
    np.testing.assert_allclose(found, run(*map(np.asarray, (x, size))), atol=1e-5)


def test_logits_of_16_bits_are_added_up_in_32():
    found = sliding_logits(
        lambda x: predict(x).astype(jnp.bfloat16), jnp.asarray(images(1, 20, 20)), window=8, stride=3
    )
    assert found.dtype == jnp.float32


def test_the_golden_holds():
    golden = Golden(golden_path("zegclip_sliding_window"))
    assert_matches(golden, replay(golden, double=False))
