import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import InputError
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.models.sed.file import load_sed
from semiovs_jax.ovs import build_ovs, model_fingerprint
from semiovs_jax.ovs.sed import label_probabilities, make_sed
from semiovs_jax.ovs.vocabulary import Concept, Vocabulary
from semiovs_jax.runtime.sharding import make_mesh, replicated, shard_batch
from tests.ovs import tiny_sed

VOCABULARY = Vocabulary(
    name="toys",
    source="a test",
    classes=("background", "ball", "kite"),
    concepts=(Concept(0, ("sky",)), Concept(0, ("grass",)), Concept(1, ("ball", "globe")), Concept(2, ("kite",))),
    templates=("a {}.", "the {}."),
    origin="toys.json",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return load_sed(tiny_sed.write_sed(tmp_path_factory.mktemp("sed") / "sed.safetensors"))


def _images(count=2, side=64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0, 255, (count, side, side, 3)), jnp.float32)


def _probabilities(sed, image):
    return np.asarray(jax.jit(sed.probabilities)(sed.weights, image))


def test_the_best_concept_wins_and_the_lowest_class_a_tie():
    planes = np.array([[[0.2, 0.9]], [[0.5, 0.1]], [[0.5, 0.3]], [[0.1, 0.9]]], np.float32)[None]
    found = label_probabilities(jnp.asarray(planes), (0, 0, 1, 2), (1, 2))
    np.testing.assert_array_equal(found.label, [[[0, 0]]])
    np.testing.assert_allclose(found.confidence, [[[0.5, 0.9]]])
    assert found.valid.all()


def test_labels_are_the_argmax_over_classes_of_resized_probabilities():
    rng = np.random.default_rng(0)
    planes = jnp.asarray(rng.uniform(size=(2, 4, 3, 5)), jnp.float32)
    size = np.array([[7, 9], [4, 10]], np.int32)
    found = label_probabilities(planes, VOCABULARY.class_of_concept, (8, 10), size=jnp.asarray(size))
    for i, (height, width) in enumerate(size):
        one = jnp.moveaxis(planes[i : i + 1], 1, -1)
        resized = np.asarray(resize_bilinear(one, (int(height), int(width)), align_corners=False))[0]
        classes = np.stack([resized[..., :2].max(-1), resized[..., 2], resized[..., 3]], axis=-1)
        np.testing.assert_array_equal(found.label[i, :height, :width], classes.argmax(-1))
        np.testing.assert_allclose(found.confidence[i, :height, :width], classes.max(-1), atol=1e-6)
        assert found.valid[i, :height, :width].all()
        assert found.valid[i].sum() == height * width


def test_it_labels_at_any_size_and_resizes_other_images(weights):
    sed = make_sed(weights, VOCABULARY)
    found = jax.jit(sed.label, static_argnames="label_size")(sed.weights, _images(side=40), label_size=(30, 50))
    assert found.label.shape == (2, 30, 50)
    assert found.label.dtype == jnp.int32
    assert set(np.unique(found.label)) <= {0, 1, 2}
    assert np.all((found.confidence > 0) & (found.confidence < 1))


def test_paths_that_must_agree_do(weights):
    image = _images()
    expected = _probabilities(make_sed(weights, VOCABULARY), image)
    chunked = _probabilities(make_sed(weights, VOCABULARY, class_chunk=3, top_k=4), image)
    np.testing.assert_allclose(chunked, expected, atol=1e-5)
    half = _probabilities(make_sed(weights, VOCABULARY, dtype="bfloat16"), image)
    assert np.abs(half - expected).mean() < 0.02


@pytest.mark.parametrize("settings", [{}, {"top_k": 1, "class_chunk": 2}], ids=["exact", "fast"])
def test_labels_do_not_depend_on_the_number_of_devices(weights, settings):
    sed = make_sed(weights, VOCABULARY, **settings)
    label = jax.jit(lambda w, image: sed.label(w, image, label_size=(20, 20)))
    images = np.asarray(_images(count=8))
    mesh = make_mesh(jax.devices()[:8])
    alone = label(sed.weights, images)
    sharded = label(jax.device_put(sed.weights, replicated(mesh)), shard_batch(images, mesh))
    np.testing.assert_array_equal(sharded.label, alone.label)
    np.testing.assert_allclose(sharded.confidence, alone.confidence, atol=2e-5)


def test_pruned_concepts_have_probability_zero(weights):
    sed = make_sed(weights, VOCABULARY, top_k=1)
    found = _probabilities(sed, _images())
    assert np.isfinite(found).all()
    alive = (found > 0).all(axis=(2, 3))
    assert np.all(alive | (found == 0).all(axis=(2, 3)))


def test_the_square_is_made_in_two_steps(weights):
    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((80, 60)))
    straight = make_sed(weights, VOCABULARY)
    assert straight.preprocess(image).dtype == np.uint8
    assert straight.preprocess(image).shape == (64, 64, 3)

    sed = dataclasses.replace(straight, short_side=48)
    short = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BILINEAR), np.float32)
    expected = resize_bilinear(jnp.asarray(short)[None], (64, 64), align_corners=False)[0]
    prepared = sed.preprocess(image)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, atol=1e-3)


def test_a_long_image_is_not_blown_up(weights):
    sed = dataclasses.replace(make_sed(weights, VOCABULARY), short_side=48)
    image = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (10, 1, 3))
    resized = np.asarray(Image.fromarray(image).resize((192, 10), Image.Resampling.BILINEAR), np.float32)
    expected = resize_bilinear(jnp.asarray(resized)[None], (64, 64), align_corners=False)[0]
    np.testing.assert_allclose(sed.preprocess(image), expected, atol=1e-3)


def test_a_fingerprint_names_what_decides_the_labels(weights):
    same = make_sed(weights, VOCABULARY).fingerprint
    assert make_sed(weights, VOCABULARY, class_chunk=2, image_size=64).fingerprint == same
    others = [{"top_k": 1}, {"dtype": "bfloat16"}, {"image_size": 96}, {"normalization": "clip"}]
    words = dataclasses.replace(VOCABULARY, templates=("one {}", "two {}"))
    found = {make_sed(weights, VOCABULARY, **other).fingerprint for other in others}
    assert len(found | {same, make_sed(weights, words).fingerprint}) == len(others) + 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, r"config\.ovs\.dtype is 'float16'"),
        ({"normalization": "none"}, r"config\.ovs\.normalization is 'none'"),
        ({"image_size": 100}, r"config\.ovs\.image_size is 100; choose a multiple of 32"),
        ({"class_chunk": -1}, r"config\.ovs\.class_chunk is -1"),
        ({"top_k": -1}, r"config\.ovs\.top_k is -1; choose 0 or more"),
        ({"top_k": -1, "dtype": "int8"}, r"config\.ovs\.dtype is 'int8'; .*\nconfig\.ovs\.top_k is -1"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(weights, settings, message):
    with pytest.raises(InputError, match=message):
        make_sed(weights, VOCABULARY, **settings)


def test_another_number_of_templates_is_refused(weights):
    with pytest.raises(InputError, match=r"toys\.json: 1 prompt templates, .* trained with 2; set config\.ovs\.temp"):
        make_sed(weights, dataclasses.replace(VOCABULARY, templates=("a {}",)))


def test_a_config_builds_it(tmp_path):
    path = tiny_sed.write_sed(tmp_path / "sed.safetensors")
    templates = tmp_path / "templates.json"
    templates.write_text('["a {}", "the {}"]')
    config = {"name": "sed", "weights": path, "vocabulary": "shapes", "templates": str(templates), "top_k": 2}
    sed = build_ovs(config, num_classes=9)
    assert (sed.image_size, sed.top_k, sed.num_classes) == (64, 2, 9)
    assert model_fingerprint(config) == sed.fingerprint
    assert model_fingerprint({**config, "image_size": 64, "class_chunk": 2, "normalization": ""}) == sed.fingerprint
    assert model_fingerprint({**config, "top_k": 0}) != sed.fingerprint
