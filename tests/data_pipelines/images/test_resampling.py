import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.images.resampling import bilinear_window, nearest_window

SOURCES, RESULTS = st.integers(1, 60), st.integers(1, 130)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pil(array: np.ndarray, size: tuple[int, int], filter_: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize(size[::-1], filter_))


@st.composite
def windows(draw):
    size = draw(RESULTS), draw(RESULTS)
    y, x = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
    return size, slice(y, draw(st.integers(y + 1, size[0]))), slice(x, draw(st.integers(x + 1, size[1])))


@settings(max_examples=300, deadline=None)
@given(SOURCES, SOURCES, windows(), st.booleans())
def test_a_window_is_the_window_of_pils_resize(height, width, wanted, mirrored):
    (size, rows, columns), image = wanted, picture(height, width)
    for window, array, filter_ in (
        (bilinear_window, image, Image.Resampling.BILINEAR),
        (nearest_window, image[..., 0], Image.Resampling.NEAREST),
    ):
        expected = pil(array, size, filter_)[rows, columns]
        found = window(array, size, rows, columns, mirrored=mirrored)
        np.testing.assert_array_equal(found, expected[:, ::-1] if mirrored else expected)
        assert found.dtype == np.uint8


@pytest.mark.parametrize("extreme", [0, 255])
def test_flat_images_stay_flat(extreme):
    image = np.full((17, 23, 3), extreme, np.uint8)
    assert (bilinear_window(image, (31, 19), slice(2, 30), slice(1, 18)) == extreme).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(200, 1000), st.integers(0, 2**16))
def test_photographs_are_resized_as_by_pil(long_side, seed):
    """Every size that training draws from a photograph of 500x375, and larger ones."""
    size = int(375 * long_side / 500 + 0.5), long_side
    y, x = seed % size[0], seed % size[1]
    rows, columns = slice(y, min(y + 160, size[0])), slice(x, min(x + 160, size[1]))
    image = picture(375, 500, seed)
    expected = pil(image, size, Image.Resampling.BILINEAR)[rows, columns]
    np.testing.assert_array_equal(bilinear_window(image, size, rows, columns), expected)
    expected = pil(image[..., 1], size, Image.Resampling.NEAREST)[rows, columns]
    np.testing.assert_array_equal(nearest_window(image[..., 1], size, rows, columns), expected)
