"""Predictions of padded images equal those of each image alone, whatever the sizes, on few compiled shapes."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from data_pipelines.errors import InputError
from data_pipelines.images.transforms import short_side_size
from semiovs_jax import augment
from semiovs_jax.evaluation.evaluator import NotFiniteLogitsError
from semiovs_jax.evaluation.inference import Inference
from semiovs_jax.evaluation.views import Views
from semiovs_jax.prediction import predictor as module
from semiovs_jax.prediction.predictor import Prediction, Predictor
from semiovs_jax.runtime.sharding import make_mesh
from tests.evaluation.test_evaluator import PARAMS, Placing, Positional, eval_config

# From 7 x 5 on, upright and on their sides.
SIZES = [(7, 5), (5, 7), (31, 31), (1, 90), (200, 3), (150, 210), *((20 + 9 * i, 120 - 5 * i) for i in range(14))]


ONE_VIEW = Views()


def images(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(sizes)]


def predictor(
    student: Any, *, devices: int = 1, views: Views = ONE_VIEW, multiple: int = 1, **changes: int
) -> Predictor:
    config = eval_config(**changes, scales=views.scales, flip=views.flip)
    inference = Inference.create(student, config)
    mesh = make_mesh(jax.devices()[:devices])
    return Predictor(inference, PARAMS, {}, mesh, config, size_multiple=multiple)


def positional(image: np.ndarray) -> Prediction:
    """The prediction of `Positional` for one image, in numpy."""
    height, width, _ = image.shape
    seen = (image / 255 - np.array(augment.IMAGENET_MEAN)) / np.array(augment.IMAGENET_STD)
    place = np.stack(np.mgrid[1 : height + 1, 1 : width + 1], -1) / [height, width]
    return _prediction(scipy.special.softmax(seen @ PARAMS["pixel"] + place @ PARAMS["place"], -1))


def alone(
    student: Any,
    image: np.ndarray,
    *,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    least: int = 0,
    **changes: int,
) -> Prediction:
    """The mean over views of the softmax of evaluation's logits for one image without padding."""
    inference = Inference.create(student, eval_config(**changes))
    logits_of = jax.jit(partial(inference.logits, PARAMS, {}), static_argnames="input_shape")
    size = image.shape[:2]
    base = inference.input_size(size)
    base = short_side_size(base, least) if min(base) < least else base
    mean = 0
    for scale, mirrored in itertools.product(scales, [False, True] if flip else [False]):
        factor = 1 if scale == 1 else max(scale, least / min(base))
        seen = tuple(max(1, round(side * factor)) for side in base)
        resize = {} if seen == size else {"input_size": jnp.array([seen], jnp.int32), "input_shape": seen}
        view = image[:, ::-1] if mirrored else image
        logits = logits_of(view[None], jnp.array([size], jnp.int32), **resize)
        probability = np.asarray(jax.nn.softmax(logits)[0])
        mean = mean + (probability[:, ::-1] if mirrored else probability)
    return _prediction(mean / (len(scales) * (1 + flip)))


def _prediction(probability: np.ndarray) -> Prediction:
    return Prediction(probability.argmax(-1).astype(np.uint8), probability.max(-1))


def assert_same(found: Prediction, expected: Prediction) -> None:
    assert (found.label.dtype, found.confidence.dtype) == (np.uint8, np.float32)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)
    assert (found.label != expected.label).mean() < 0.01  # two classes of equal probability, up to rounding


@pytest.mark.parametrize("devices", [1, 8])
def test_twenty_sizes_are_predicted_on_four_shapes(devices: int):
    student = Positional()
    found = predictor(student, devices=devices)
    predictions = found.predict(images(SIZES))
    assert len(student.shapes) == found.compilations <= 4
    for image, prediction in zip(images(SIZES), predictions, strict=True):
        assert_same(prediction, positional(image))
    found.predict(images(SIZES)[::-1])
    assert found.compilations <= 4


def test_images_that_come_one_by_one_compile_few_shapes():
    student, order = Positional(), np.random.default_rng(0).permutation(len(SIZES))
    found = predictor(student, batch_size=1)
    for i in order:
        image = images(SIZES)[i]
        assert_same(*found.predict([image]), positional(image))
    assert len(student.shapes) == found.compilations <= 6
    assert len(found._programs) <= 4


def test_windows_take_images_that_are_smaller_than_a_window():
    sizes = [(7, 5), (50, 60), (16, 16), (33, 12), (90, 40)]
    found = predictor(Placing(), window=16, stride=11, max_shapes=2).predict(images(sizes))
    for image, prediction in zip(images(sizes), found, strict=True):
        assert_same(prediction, alone(Placing(), image, window=16, stride=11, least=16))


def test_a_short_side_is_that_of_evaluation():
    sizes = [(7, 5), (50, 60), (90, 40)]
    found = predictor(Positional(), short_side=24).predict(images(sizes))
    for image, prediction in zip(images(sizes), found, strict=True):
        assert_same(prediction, alone(Positional(), image, short_side=24))


@pytest.mark.parametrize("changes", [{}, {"window": 16, "stride": 11}, {"short_side": 24}])
def test_probabilities_of_scales_and_mirrored_images_are_averaged(changes: dict[str, int]):
    sizes = [(20, 33), (7, 50), (41, 30)]
    views = Views((0.5, 1.0, 1.6), flip=True)
    student = Placing() if changes.get("window") else Positional()
    found = predictor(student, views=views, max_shapes=1, **changes)
    least = changes.get("window", 0)
    for image, prediction in zip(images(sizes), found.predict(images(sizes)), strict=True):
        assert_same(prediction, alone(student, image, scales=views.scales, flip=True, least=least, **changes))
    assert found.compilations == 1


def test_a_mirrored_image_has_the_mirrored_prediction():
    (image,) = images([(20, 33)])
    found = predictor(Positional(), views=Views(flip=True))
    plain, mirrored = found.predict([image, np.ascontiguousarray(image[:, ::-1])])
    assert_same(Prediction(mirrored.label[:, ::-1], mirrored.confidence[:, ::-1]), plain)


def test_logits_that_are_not_finite_raise_where_they_belong_to_the_image():
    class Broken(Positional):
        def apply(self, params, batch_stats, x, *, train, size):
            logits, batch_stats = super().apply(params, batch_stats, x, train=train, size=size)
            outside = jnp.arange(x.shape[2]) >= size[:, 1:]
            wide = size[:, 1:] > 40
            return logits + jnp.where(outside | wide, jnp.nan, 0)[:, None, :, None], batch_stats

    found = predictor(Broken(), max_shapes=1)
    assert len(found.predict(images([(20, 33), (30, 30)]))) == 2
    with pytest.raises(NotFiniteLogitsError, match="an image of 50x20"):
        found.predict(images([(20, 33), (20, 50)]))


def test_all_invalid_values_are_named():
    with pytest.raises(InputError) as error:
        predictor(Positional(), multiple=14, window=32, stride=40)
    message = str(error.value)
    assert "config.eval.stride=40" in message
    assert "multiples of 14; set it to 28" in message


def test_an_image_that_is_seen_too_large_is_a_fault():
    found = predictor(Positional(), short_side=512)
    assert found.size_fault((300, 500)) is None
    assert "an image of 50000x3 (width x height) is seen at" in str(found.size_fault((3, 50_000)))


def test_batches_of_large_images_are_smaller(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_PIXELS_OF_A_ROW", 64 * 64)
    found = predictor(Positional(), batch_size=4, max_shapes=2)
    lengths = [(shape.image, len(indices)) for shape, indices in found.batches([(64, 64)] * 8 + [(128, 128)] * 3)]
    assert lengths == [((64, 64), 4), ((64, 64), 4), ((128, 128), 1), ((128, 128), 1), ((128, 128), 1)]


def test_a_full_memory_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    found = predictor(Positional())
    monkeypatch.setattr(found, "_program", lambda shape: full)
    with pytest.raises(
        InputError, match=r"images of 64x32 .* do not fit into the memory; set --config\.eval\.batch_size"
    ):
        found.predict(images([(20, 33)]))
