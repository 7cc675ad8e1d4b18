import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax import augment
from tests.golden import Golden, assert_matches, golden_path
from tests.replays.transforms_device import adjust_brightness, adjust_contrast, device_outputs

few = settings(max_examples=10, deadline=None)
draw_boxes = jax.jit(augment.cutmix_boxes, static_argnums=(1, 2))
strong_view = jax.jit(augment.strong_view)
blur = jax.jit(augment.gaussian_blur)


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 13, 17, 3)), jnp.float32)


def jitter(factors=(1, 1, 1), turns=0.0, order=(0, 1, 2), hue_position=0, n=6):
    return augment.Jitter(
        jnp.tile(jnp.array(factors, float), (n, 1)),
        jnp.full(n, turns),
        jnp.tile(jnp.array(order), (n, 1)),
        jnp.full(n, hue_position),
    )


def test_reference_photometry():
    golden = Golden(golden_path("transforms"))
    outputs = device_outputs(golden)
    assert len(outputs) == 25
    golden.keys = list(outputs)
    assert_matches(golden, outputs)


def test_reference_boxes():
    meta = json.loads(str(np.load(golden_path("transforms"))["meta"]))
    assert meta["cutmix_box"]
    for case in meta["cutmix_box"]:
        size = case["img_size"]
        values = [draw[-1] for draw in case["draws"]]
        area = values[0] * size * size
        ratio, left, top = np.array(values[1:]).reshape(-1, 3).T
        corner = np.stack([top, left], -1).astype(np.int32)
        box = augment.first_box_inside(jnp.array([area]), jnp.array([ratio]), jnp.array([corner]), size)
        top, left, height, width = (int(v[0]) for v in box)
        assert (top, top + height, left, left + width) == tuple(case[k] for k in ("y0", "y1", "x0", "x1"))
        assert height * width == case["area"]


@few
@given(st.integers(0, 2**31), st.sampled_from([33, 97]))
def test_boxes_are_boxes_of_the_stated_area(seed, size):
    boxes = np.asarray(draw_boxes(jax.random.key(seed), 16, size, 1.0))
    for box in boxes:
        rows, columns = np.nonzero(box.any(1))[0], np.nonzero(box.any(0))[0]
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert box.sum() == height * width
        # Sides are cut to whole pixels, so the area may fall short by one row and one column.
        assert 0.02 * size**2 - height - width - 1 <= box.sum() <= 0.4 * size**2
        assert 0.3 * (width - 1) < height + 1
        assert 0.3 * (height - 1) < width + 1


def test_boxes_probability_and_independence():
    filled = np.asarray(draw_boxes(jax.random.key(1), 1000, 16, 0.3)).any((1, 2))
    assert abs(filled.mean() - 0.3) < 0.05
    assert not draw_boxes(jax.random.key(1), 1000, 16, 0.0).any()
    boxes = np.asarray(draw_boxes(jax.random.key(1), 200, 64, 1.0))
    assert len(np.unique(boxes.reshape(200, -1), axis=0)) > 190
    # Nearly everywhere in the image, and the mean area of a uniform draw from 2 to 40 %.
    assert boxes.any(0)[4:-4, 4:-4].all()
    assert abs(boxes.mean() - 0.21) < 0.03


def test_box_falls_back_to_a_square():
    box = augment.first_box_inside(jnp.array([16.0]), jnp.ones((1, 2)), jnp.full((1, 2, 2), 9), 10)
    assert [int(v[0]) for v in box] == [0, 0, 4, 4]


@few
@given(st.integers(0, 2**31))
def test_paste(seed):
    rng = np.random.default_rng(seed)
    a, b = (jnp.asarray(rng.integers(0, 256, (2, 5, 6))) for _ in range(2))
    box = jnp.asarray(rng.random((2, 5, 6)) < 0.5)
    pasted = augment.paste(a, b, box)
    np.testing.assert_array_equal(pasted, np.where(box, b, a))
    np.testing.assert_array_equal(augment.paste(a, a, box), a)
    np.testing.assert_array_equal(augment.paste(pasted, a, box), a)
    np.testing.assert_array_equal(augment.paste(a, b, ~box), augment.paste(b, a, box))
    with_channels = augment.paste(a[..., None] * jnp.arange(3), b[..., None] * jnp.arange(3), box)
    np.testing.assert_array_equal(with_channels, pasted[..., None] * jnp.arange(3))


@few
@given(st.floats(0, 2), st.floats(0, 255))
def test_blur_keeps_constants(sigma, value):
    image = jnp.full((2, 9, 8, 3), value, jnp.float32)
    np.testing.assert_allclose(blur(image, jnp.full(2, sigma)), image, atol=1e-3)


def test_blur_is_a_gaussian(images):
    sigma = jnp.array([0, 0.1, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(blur(images, sigma)[0], images[0])
    point = jnp.zeros((6, 31, 31, 1)).at[:, 15, 15].set(1.0)
    blurred = np.asarray(blur(point, sigma))[..., 0]
    np.testing.assert_allclose(blurred.sum((1, 2)), 1, atol=1e-5)
    offset = np.arange(31) - 15
    deviation = np.sqrt((blurred.sum(1) * offset**2).sum(1))
    np.testing.assert_allclose(deviation[3:], sigma[3:], rtol=0.03)
    np.testing.assert_allclose(blurred, blurred.transpose(0, 2, 1), atol=1e-7)


def test_hue_is_a_rotation(images):
    third = jnp.full(6, 1 / 3)
    once = augment.adjust_hue(images, third)
    np.testing.assert_allclose(once, jnp.roll(images, 1, -1), atol=1e-2)
    np.testing.assert_allclose(augment.adjust_hue(once, 2 * third), images, atol=1e-2)
    np.testing.assert_allclose(augment.adjust_hue(images, jnp.zeros(6)), images, atol=1e-3)
    np.testing.assert_allclose(augment.adjust_hue(images, jnp.ones(6)), images, atol=1e-2)
    gray = jnp.full((1, 2, 2, 3), 70.0)
    np.testing.assert_array_equal(augment.adjust_hue(gray, jnp.array([0.2])), gray)


def test_factor_one_is_the_identity(images):
    for adjust in (adjust_brightness, adjust_contrast, augment.adjust_saturation):
        np.testing.assert_array_equal(adjust(images, jnp.ones(6)), images)
    np.testing.assert_allclose(augment.color_jitter(images, jitter()), images, atol=1e-3)


@pytest.mark.parametrize("hue_position", range(4))
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_jitter_is_its_operations_in_order(images, order, hue_position):
    factors = (0.7, 1.4, 0.6)
    operations = [adjust_brightness, adjust_contrast, augment.adjust_saturation]
    chain = [(operations[kind], factors[kind]) for kind in order]
    chain.insert(hue_position, (augment.adjust_hue, 0.13))
    expected = images
    for operation, parameter in chain:
        expected = operation(expected, jnp.full(6, parameter))
    got = augment.color_jitter(images, jitter(factors, 0.13, order, hue_position))
    np.testing.assert_allclose(got, expected, atol=1e-2)


def test_drawn_jitter_is_uniform_over_orders():
    drawn = augment.draw_jitter(jax.random.key(0), 4800)
    orders = np.column_stack([drawn.order, drawn.hue_position])
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 130
    assert counts.max() < 270
    assert abs((np.asarray(drawn.turns) == 0).mean() - 0.2) < 0.03
    factors = np.asarray(drawn.factors)
    assert factors.min() >= 0.5
    assert factors.max() <= 1.5
    assert abs(np.asarray(drawn.turns)).max() <= 0.25


def test_views(images):
    pixels = images.astype(jnp.uint8)
    weak = augment.weak_view(pixels)
    np.testing.assert_allclose(weak, augment.normalize(images))
    first, again, other = (strong_view(jax.random.key(k), pixels) for k in (0, 0, 1))
    assert first.dtype == jnp.float32
    assert first.shape == weak.shape
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, weak)
    black, white = (augment.normalize(jnp.full(3, v)) for v in (0.0, 255.0))
    assert (first >= black - 1e-4).all()
    assert (first <= white + 1e-4).all()


def test_strong_view_is_that_of_its_operations_one_by_one():
    """A compiler may compute what the hue is taken of once for each reader, with other roundings."""
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 65, 65, 3)), jnp.uint8)
    key = jax.random.key(3)
    compiled = strong_view(key, pixels)
    with jax.disable_jit():
        one_by_one = augment.strong_view(key, pixels)
    np.testing.assert_allclose(compiled, one_by_one, atol=1e-4)


def test_strong_view_probabilities():
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)), jnp.uint8)
    views = strong_view(jax.random.key(2), jnp.tile(pixels, (2000, 1, 1, 1)))
    levels = np.asarray(views) * np.array(augment.IMAGENET_STD) + np.array(augment.IMAGENET_MEAN)
    gray = np.ptp(levels, axis=-1).max((1, 2)) < 1e-5
    assert abs(gray.mean() - 0.2) < 0.03
    # Unchanged: no jitter, no grayscale, and no blur or one too small to show.
    same = np.abs(255 * levels - pixels).max((1, 2, 3)) < 0.5
    assert 0.05 < same.mean() < 0.12


def test_views_do_not_depend_on_sharding():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 9, 9, 3)), jnp.uint8)
    key = jax.random.key(0)
    sharded = jax.jit(augment.strong_view, in_shardings=(None, sharding)).lower(key, pixels).compile()
    assert "all-gather" not in sharded.as_text()
    alone = strong_view(key, pixels)
    np.testing.assert_allclose(sharded(key, jax.device_put(pixels, sharding)), alone, atol=1e-5)
