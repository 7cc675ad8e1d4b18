"""Evaluation on padded shapes gives the confusion matrix of a loop over unpadded images."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.datasets import DatasetInfo, voc_palette
from data_pipelines.errors import InputError
from semiovs_jax import augment
from semiovs_jax.evaluation import metrics
from semiovs_jax.evaluation.evaluator import Evaluator, NotFiniteLogitsError, check_evaluation
from semiovs_jax.evaluation.inference import Inference, resize_levels
from semiovs_jax.evaluation.measures import measure
from semiovs_jax.prediction.predictor import Predictor
from semiovs_jax.runtime.hlo import find_collectives, parse_instructions
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh
from tests.evaluation.test_sliding import predict, predict_numpy, sliding_numpy
from tests.golden import Golden, golden_path
from tests.models.test_student import CLASSES, student

IGNORE = 255
DATASET = DatasetInfo("letters", tuple("abcde"), voc_palette(), IGNORE, None, {})
SIZES = [(40, 60), (33, 64), (64, 33), (50, 50), (20, 90), (41, 61), (64, 64), (31, 31), (40, 60), (90, 20), (7, 5)]


class Records(Sequence):
    """Validation images of given sizes, with labels of 0..last_class and a share of ignored pixels."""

    def __init__(self, sizes: list[tuple[int, int]], last_class: int = CLASSES - 1):
        self._sizes, self._last_class = sizes, last_class

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self._sizes[index], 3), np.uint8)
        label = rng.integers(0, self._last_class + 1, self._sizes[index]).astype(np.uint8)
        label[rng.random(label.shape) < 0.2] = IGNORE
        return {"id": str(index), "image": image, "label": label}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return self._sizes


class Positional:
    """A student whose logits depend on the pixel and on its position in the true image."""

    def __init__(self):
        self.shapes: set[tuple[int, ...]] = set()  # as traced: one for each compilation

    def apply(self, params, batch_stats, x, *, train, size):
        assert not train
        self.shapes.add(x.shape)
        row = (1 + jnp.arange(x.shape[1])[:, None]) / size[:, :1, None]
        column = (1 + jnp.arange(x.shape[2])) / size[:, 1:, None]
        place = jnp.stack(jnp.broadcast_arrays(row, column), axis=-1)
        return x @ params["pixel"] + place @ params["place"], batch_stats


PARAMS = {
    "pixel": jnp.asarray(np.random.default_rng(0).normal(size=(3, CLASSES)), jnp.float32),
    "place": jnp.asarray(np.random.default_rng(1).normal(size=(2, CLASSES)), jnp.float32),
}


def evaluator(student: Any, records: Records, *, devices: int = 8, multiple: int = 1, **changes: Any) -> Evaluator:
    mesh = make_mesh(jax.devices()[:devices])
    return Evaluator(student, records, DATASET, eval_config(**changes), mesh, size_multiple=multiple)


def eval_config(**changes: Any) -> ConfigDict:
    views = {"scales": (1.0,), "flip": False}
    sizes = {"short_side": 0, "window": 0, "stride": 426}
    return ConfigDict({"batch_size": 3, "max_shapes": 4, **sizes, **views, **changes})


def by_single_images(student: Any, records: Records, params: Any, batch_stats: Any) -> metrics.Scores:
    """The reference's protocol: one image at a time at its own size, counted in numpy."""
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for record in (records[i] for i in range(len(records))):
        image, label = augment.weak_view(jnp.asarray(record["image"])[None]), record["label"]
        size = jnp.asarray([label.shape], jnp.int32)
        logits, _ = student.apply(params, batch_stats, image, train=False, size=size)
        prediction = np.asarray(logits[0].argmax(-1))
        np.add.at(confusion, (label[label != IGNORE], prediction[label != IGNORE]), 1)
    return metrics.scores(confusion)


def assert_same(found: metrics.Scores, expected: metrics.Scores) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("batch_size", "max_shapes"), [(3, 4), (8, 1), (5, 2)])
def test_equals_a_loop_over_single_images(devices, batch_size, max_shapes):
    student, records = Positional(), Records(SIZES)
    found = evaluator(student, records, batch_size=batch_size, max_shapes=max_shapes, devices=devices).run(PARAMS, {})
    rows = -(-batch_size // devices) * devices
    assert {shape[0] for shape in student.shapes} == {rows}
    assert len(student.shapes) <= max_shapes
    assert_same(found, by_single_images(Positional(), records, PARAMS, {}))


class Patches(Positional):
    """A student of patches of 14 px, which accepts no other shapes."""

    def apply(self, params, batch_stats, x, *, train, size):
        assert x.shape[1] % 14 == x.shape[2] % 14 == 0
        return super().apply(params, batch_stats, x, train=train, size=size)


@pytest.mark.parametrize("max_shapes", [1, 4])
def test_padded_shapes_are_multiples_of_what_the_student_takes(max_shapes):
    student, records = Patches(), Records(SIZES)
    found = evaluator(student, records, multiple=14, max_shapes=max_shapes).run(PARAMS, {})
    assert 0 < len(student.shapes) <= max_shapes
    assert_same(found, by_single_images(Positional(), records, PARAMS, {}))


def test_windows_that_the_student_cannot_take_are_refused():
    with pytest.raises(InputError, match=r"config\.eval\.window=32: .* multiples of 14; set it to 28"):
        evaluator(Placing(), Records([(50, 60)]), multiple=14, window=32, stride=20)


def test_a_record_that_cannot_be_read_raises_its_own_error():
    class Broken(Records):
        def __getitem__(self, index: Any) -> Any:
            if index == 6:
                raise InputError("JPEGImages/6.jpg: truncated")
            return super().__getitem__(index)

    with pytest.raises(InputError) as error:
        evaluator(Positional(), Broken(SIZES)).run(PARAMS, {})
    assert str(error.value) == "JPEGImages/6.jpg: truncated"


@pytest.mark.parametrize("num_threads", [0, 5])
def test_the_number_of_threads_does_not_matter(num_threads):
    records, mesh = Records(SIZES), make_mesh(jax.devices()[:1])
    by_threads = Evaluator(
        Positional(), records, DATASET, eval_config(), mesh, size_multiple=1, num_threads=num_threads
    )
    assert_same(by_threads.run(PARAMS, {}), evaluator(Positional(), records, devices=1).run(PARAMS, {}))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_images_without_finite_logits_are_counted_in_an_error(bad):
    class Broken(Positional):
        def apply(self, params, batch_stats, x, *, train, size):
            logits, batch_stats = super().apply(params, batch_stats, x, train=train, size=size)
            wide = (size[:, 1] > 60)[:, None, None, None]
            return logits.at[:, :1, :1].add(jnp.where(wide, bad, 0)), batch_stats

    records = Records(SIZES)
    wide = sum(width > 60 and records[i]["label"][0, 0] != IGNORE for i, (_, width) in enumerate(SIZES))
    assert 1 < wide < len(SIZES)
    with pytest.raises(NotFiniteLogitsError, match=rf"{wide} of 11 validation images have logits that are not finite"):
        evaluator(Broken(), records).run(PARAMS, {})

    with pytest.raises(NotFiniteLogitsError, match=rf"{wide} of 11 validation images"):
        list(evaluator(Broken(), records).predictions(PARAMS, {}))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "how", [{}, {"short_side": 32, "window": 32, "stride": 26}, {"scales": (0.75, 1.5), "flip": True}]
)
def test_predictions_are_those_that_are_scored(how: dict[str, Any], devices: int):
    records, windows = Records(SIZES), "window" in how
    both = evaluator(Placing() if windows else Positional(), records, devices=devices, **how)
    params = {} if windows else PARAMS
    found = sorted(both.predictions(params, {}), key=lambda predicted: predicted.position)
    assert [predicted.label.shape for predicted in found] == SIZES
    for predicted in found:
        np.testing.assert_array_equal(predicted.label, records[predicted.position]["label"])
        assert ((predicted.confidence > 1 / CLASSES - 1e-6) & (predicted.confidence <= 1)).all()
    assert_same(metrics.scores(measure(found, DATASET).confusion), both.run(params, {}))


@pytest.mark.parametrize("devices", [1, 8])
def test_scores_of_each_image_are_those_of_its_prediction(devices: int):
    records = Records(SIZES)
    both = evaluator(Positional(), records, devices=devices)
    scores, by_image = both.run_by_image(PARAMS, {})
    assert_same(scores, both.run(PARAMS, {}))
    measured = measure(both.predictions(PARAMS, {}), DATASET)
    np.testing.assert_array_equal(by_image.miou, [image.miou for image in measured.images])
    np.testing.assert_array_equal(by_image.label_pixels.sum(0), measured.confusion.sum(1))
    labels = [records[index]["label"] for index in range(len(SIZES))]
    expected = [np.bincount(label.ravel(), minlength=256)[:CLASSES] for label in labels]
    np.testing.assert_array_equal(by_image.label_pixels, expected)


def test_an_image_without_labels_has_no_score():
    class Unlabeled(Records):
        def __getitem__(self, index: Any) -> Any:
            record = super().__getitem__(index)
            return record | {"label": np.full_like(record["label"], IGNORE)} if index == 1 else record

    _, by_image = evaluator(Positional(), Unlabeled(SIZES[:3])).run_by_image(PARAMS, {})
    assert np.isnan(by_image.miou).tolist() == [False, True, False]


def test_some_images_are_predicted_as_among_all():
    both = evaluator(Positional(), Records(SIZES), devices=1)
    whole = {found.position: found for found in both.predictions(PARAMS, {})}
    some = {found.position: found for found in both.predictions(PARAMS, {}, only=[8, 1, 5, 1])}
    assert sorted(some) == [1, 5, 8]
    for position, found in some.items():
        np.testing.assert_array_equal(found.prediction, whole[position].prediction)
    assert list(both.predictions(PARAMS, {}, only=[])) == []


@pytest.mark.parametrize(
    "how",
    [
        {"scales": (0.75, 1.25), "flip": True},
        {"window": 20, "stride": 15, "scales": (1.0, 1.5)},
        {"short_side": 40, "window": 20, "stride": 15, "flip": True},
        {"short_side": 24, "scales": (1.5,)},
    ],
)
def test_prediction_has_the_classes_and_probabilities_of_evaluation(how: dict[str, Any]):
    records = Records([(40, 60), (33, 64), (64, 33), (31, 31), (27, 90)])
    student, params = (Placing(), {}) if "window" in how else (Positional(), PARAMS)
    scored = evaluator(student, records, devices=1, max_shapes=2, **how).predictions(params, {})
    config, mesh = eval_config(**how), make_mesh(jax.devices()[:1])
    predictor = Predictor(Inference.create(student, config), params, {}, mesh, config, size_multiple=1)
    predicted = predictor.predict([records[i]["image"] for i in range(len(records))])
    for found in scored:
        expected = predicted[found.position]
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)
        assert (found.prediction != expected.label).mean() < 0.002  # two classes of equal probability, up to rounding


def test_views_change_the_scores():
    records = Records(SIZES)
    scores = [evaluator(Positional(), records, devices=1, **views).run(PARAMS, {}) for views in ({}, {"flip": True})]
    assert (scores[0].iou != scores[1].iou).any()


def test_confidence_is_the_probability_of_the_predicted_class():
    records = Records(SIZES[:1])
    (found,) = evaluator(Positional(), records, devices=1).predictions(PARAMS, {})
    size = jnp.asarray([SIZES[0]], jnp.int32)
    image = augment.weak_view(jnp.asarray(records[0]["image"])[None])
    logits = np.asarray(Positional().apply(PARAMS, {}, image, train=False, size=size)[0][0], np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_array_equal(found.prediction, shares.argmax(-1))
    np.testing.assert_allclose(found.confidence, shares.max(-1), rtol=1e-5)


def test_a_second_run_compiles_nothing():
    student, records = Positional(), Records(SIZES)
    both = evaluator(student, records)
    first = both.run(PARAMS, {})
    student.shapes.clear()
    assert_same(both.run(PARAMS, {}), first)
    assert not student.shapes


def test_absent_classes_count_as_zero_in_one_mean_and_not_in_the_other():
    absent = CLASSES - 1
    params = {"pixel": PARAMS["pixel"].at[:, absent].set(0), "place": PARAMS["place"].at[:, absent].set(-1e6)}
    scores = evaluator(Positional(), Records(SIZES[:4], last_class=absent - 1)).run(params, {})
    assert scores.present.tolist() == [True] * absent + [False]
    assert scores.mean_iou == pytest.approx(scores.iou.sum() / CLASSES)
    assert scores.mean_iou_present == pytest.approx(scores.iou.sum() / absent)


def test_a_student_of_convolutions():
    apply, params, batch_stats = student()
    records = Records([(33, 40), (40, 33), (40, 33)])
    found = evaluator(SimpleNamespace(apply=apply), records, max_shapes=1, devices=1).run(params, batch_stats)
    unpadded = SimpleNamespace(apply=lambda *args, size, train: apply(*args, train=train))
    assert len(set(found.iou)) > 1
    assert_same(found, by_single_images(unpadded, records, params, batch_stats))


class Placing:
    """A student whose logits depend on the position in its input and on the mean of it: every window differs."""

    def apply(self, params, batch_stats, x, *, train, size=None):
        assert not train
        return predict(x, size), batch_stats


def resize_numpy(image: np.ndarray, shape: tuple[int, int], align_corners: bool) -> np.ndarray:
    for axis, target in enumerate(shape):
        source = image.shape[axis]
        i = np.arange(target)
        place = i * (source - 1) / max(target - 1, 1) if align_corners else (i + 0.5) * source / target - 0.5
        place = np.clip(place, 0, source - 1)
        low = np.floor(place).astype(int)
        weight = (place - low).reshape(-1, *[1] * (2 - axis))
        low, high = image.take(low, axis), image.take(np.minimum(low + 1, source - 1), axis)
        image = low + weight * (high - low)
    return image


def by_single_images_in_numpy(
    records: Records, predict: Any = predict_numpy, *, short_side: int = 0, window: int = 10**6, stride: int = 1
) -> metrics.Scores:
    """SemiVL's protocol: one image at a time; whole images are one window."""
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for record in (records[i] for i in range(len(records))):
        image, label = record["image"].astype(np.float64), record["label"]
        if short_side:
            height, width = label.shape
            size = (round(short_side * height / min(label.shape)), round(short_side * width / min(label.shape)))
            image = np.floor(resize_numpy(image, size, align_corners=False) + 0.5 + 1e-3)
        image = (image / 255 - augment.IMAGENET_MEAN) / augment.IMAGENET_STD
        logits = sliding_numpy(predict, image, window, stride)
        prediction = resize_numpy(logits, label.shape, align_corners=True).argmax(-1)
        np.add.at(confusion, (label[label != IGNORE], prediction[label != IGNORE]), 1)
    return metrics.scores(confusion)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("short_side", "window", "stride"), [(0, 20, 15), (32, 32, 26), (48, 31, 31)])
def test_windows_equal_a_loop_over_single_images(devices, short_side, window, stride):
    records = Records([size for size in SIZES if min(size) >= 20])
    how = {"short_side": short_side, "window": window, "stride": stride}
    found = evaluator(Placing(), records, devices=devices, batch_size=4, max_shapes=2, **how).run({}, {})
    expected = by_single_images_in_numpy(records, **how)
    assert len(set(found.iou)) > 1
    assert_same(found, expected)


@pytest.mark.parametrize("max_shapes", [1, 3])
def test_a_student_may_see_whole_images_of_another_size(max_shapes):
    records = Records(SIZES)
    found = evaluator(Placing(), records, max_shapes=max_shapes, short_side=24).run({}, {})
    assert_same(found, by_single_images_in_numpy(records, short_side=24))


def test_a_student_of_convolutions_sees_windows():
    apply, params, batch_stats = student()

    def of_window(image: np.ndarray) -> np.ndarray:
        return np.asarray(apply(params, batch_stats, np.float32(image)[None], train=False)[0][0])

    records = Records([(33, 40), (50, 33), (40, 64)])
    how = {"window": 33, "stride": 20}
    found = evaluator(SimpleNamespace(apply=apply), records, max_shapes=2, devices=1, **how).run(params, batch_stats)
    assert len(set(found.iou)) > 1
    assert_same(found, by_single_images_in_numpy(records, of_window, **how))


def test_images_are_resized_as_the_reference_does_but_for_single_levels():
    golden = Golden(golden_path("zegclip_sliding_window"))
    image, expected = golden["valresize_in"], golden["valresize_out"]
    shape = expected.shape[:2]
    sizes = (jnp.array([side], jnp.int32) for side in (image.shape[:2], shape))
    found = np.asarray(resize_levels(augment.as_float(jnp.asarray(image))[None], shape, *sizes))[0]
    off = np.abs(found - expected)
    assert off.max() <= 1
    assert off.mean() < 0.06


@pytest.mark.parametrize("views", [{}, {"scales": (1.0, 1.5), "flip": True}])
def test_evaluating_by_windows_moves_no_image_between_devices(views: dict[str, Any]):
    records, mesh = Records([(30, 44)] * 8), make_mesh()
    both = evaluator(Placing(), records, batch_size=8, short_side=32, window=24, stride=20, **views)
    ((bucket, batch),) = both._batches()
    batch = {name: jax.device_put(array, batch_sharding(mesh)) for name, array in batch.items()}
    compiled = both._confusion.lower({}, {}, batch, shape=both._input_shapes[bucket]).compile()
    collectives = find_collectives(parse_instructions(compiled.as_text()))
    assert {collective.kind for collective in collectives} == {"all-reduce"}
    assert sum(collective.num_bytes for collective in collectives) == 4 * (CLASSES**2 + 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "every validation image whole and at its own size, single scale"),
        ({"window": 20, "stride": 15}, "in windows of 20 px every 15 px with mean logits and at its own size"),
        ({"short_side": 32}, "whole and with its short side at 32 px, logits resized to the label's size"),
        (
            {"short_side": 32, "window": 32, "stride": 26},
            "32 px every 26 px with mean logits and with its short side",
        ),
        (
            {"scales": (0.75, 1, 1.25), "flip": True},
            "at its own size, mean probabilities of 6 views: scales 0.75, 1, 1.25, each also mirrored; IoU from one",
        ),
        ({"flip": True}, "mean probabilities of 2 views: scale 1, each also mirrored;"),
        ({"scales": (1.5,)}, "single scale 1.5, no flip;"),
    ],
)
def test_protocol_says_what_was_done(changes, sentence):
    protocol = evaluator(Placing(), Records([(33, 40)]), **changes).protocol
    assert sentence in protocol
    assert "absent classes as 0" in protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"window": 20, "stride": 21},
            r"config\.eval\.stride=21 with config\.eval\.window=20: set it between 1 and 20",
        ),
        (
            {"short_side": 32, "window": 33, "stride": 20},
            r"config\.eval\.window=33 is larger than images with config\.eval\.short_side=32; set it to 32 or less",
        ),
        (
            {"window": 34, "stride": 20},
            r"config\.eval\.window=34 is larger than a validation image of 40x33 .* set it to 33 or less, or "
            r"config\.eval\.short_side to 34 or more",
        ),
        (
            {"short_side": 32, "window": 32, "stride": 20, "scales": (0.5, 1.0)},
            r"config\.eval\.scales=\(0\.5, 1\.0\): images with config\.eval\.short_side=32 are seen at a short side of "
            r"16 px, smaller than config\.eval\.window=32; leave out scales below 1, or set "
            r"config\.eval\.short_side to 64 or more",
        ),
        (
            {"window": 30, "stride": 20, "scales": (0.75,)},
            r"config\.eval\.scales=\(0\.75,\): a validation image of 40x33 .* is seen at a short side of 25 px, "
            r"smaller than config\.eval\.window=30; leave out scales below 0\.909",
        ),
    ],
)
def test_evaluation_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        check_evaluation(eval_config(**changes), Records([(50, 60), (33, 40)]).sizes)
