import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.file import load_clip, normalize
from semiovs_jax.models.clip.vit import MASKCLIP
from semiovs_jax.ovs import build_ovs, model_fingerprint
from semiovs_jax.ovs.maskclip import build_maskclip_labeler, class_scores, label_scores, make_maskclip
from semiovs_jax.ovs.vocabulary import load_vocabulary
from tests.golden import Golden, assert_matches, golden_path
from tests.ovs.tiny_clip import CLASSES, CONFIG, write_clip, write_vocabulary
from tests.replays.maskclip_labels import replay

few = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return {
        "name": "maskclip",
        "weights": write_clip(folder / "clip.safetensors"),
        "vocabulary": write_vocabulary(folder / "pets.json"),
        "image_size": 40,
    }


@pytest.fixture(scope="module")
def ovs(config):
    return build_ovs(config, 3)


@functools.partial(jax.jit, static_argnums=(0, 3))
def label(model, weights, image, label_size, size=None):
    return model.label(weights, image, label_size=label_size, size=size)


def photos(count, *shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (count, *shape, 3)), jnp.float32)


def scores_of(seed, shape=(2, 3, 4), classes=3):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, classes)), jnp.float32)


def test_golden():
    golden = Golden(golden_path("maskclip_labels"))
    assert_matches(golden, replay(golden, double=False))


@few
@given(st.integers(0, 2**31), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_order_of_concepts_inside_a_class_changes_nothing(seed, counts):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((1, 2, 3, 5)).astype(np.float32)
    text = rng.standard_normal((sum(counts), 5)).astype(np.float32)
    found = class_scores(jnp.asarray(dense), jnp.asarray(text), counts)
    groups = np.split(text, np.cumsum(counts)[:-1])
    expected = np.stack([(dense @ group.T).max(-1) for group in groups], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    shuffled = np.concatenate([rng.permutation(group) for group in groups])
    np.testing.assert_allclose(class_scores(jnp.asarray(dense), jnp.asarray(shuffled), counts), found, atol=1e-6)


def test_words_inside_a_class_may_be_permuted(config, ovs, tmp_path):
    classes = {**CLASSES, "background": [["lawn", "grass"], "sky"], "dog": ["puppy", "dog"]}
    other = build_ovs({**config, "vocabulary": write_vocabulary(tmp_path / "pets.json", classes)}, 3)
    image = photos(2, 40, 40)
    found, same = (label(model, model.weights, image, (20, 24)) for model in (ovs, other))
    np.testing.assert_array_equal(found.label, same.label)
    np.testing.assert_allclose(found.confidence, same.confidence, atol=1e-6)


def test_labels_on_a_canvas_equal_labels_of_each_image_alone():
    scores = scores_of(0)
    sizes = [(17, 30), (24, 11)]
    at_once = jax.jit(lambda scores, size: label_scores(scores, (24, 30), size=size))
    found = at_once(scores, jnp.asarray(sizes, jnp.int32))
    for i, (height, width) in enumerate(sizes):
        alone = jax.jit(label_scores, static_argnums=1)(scores[i : i + 1], (height, width))
        np.testing.assert_allclose(found.confidence[i, :height, :width], alone.confidence[0], atol=1e-5)
        np.testing.assert_array_equal(found.label[i, :height, :width], alone.label[0])
        expected = np.zeros((24, 30), bool)
        expected[:height, :width] = True
        np.testing.assert_array_equal(found.valid[i], expected)
        assert alone.valid.all()


def test_confidence_is_the_softmax_of_the_winner():
    scores = scores_of(1, (1, 4, 4))
    found = label_scores(scores, (4, 4), logit_scale=7.0)
    probabilities = jax.nn.softmax(7.0 * scores)
    np.testing.assert_array_equal(found.label, scores.argmax(-1))
    np.testing.assert_allclose(found.confidence, probabilities.max(-1), atol=1e-6)


def test_label_of_a_crop_is_that_of_the_resized_crop(ovs):
    crop = photos(2, 25, 25)
    square = jax.image.resize(crop, (2, 40, 40, 3), "bilinear")
    found = label(ovs, ovs.weights, crop, (25, 25))
    expected = label(ovs, ovs.weights, square, (25, 25))
    assert found.label.shape == (2, 25, 25)
    assert found.label.dtype == jnp.int32
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-6)


def test_label_is_pure_and_shards(ovs):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    image = photos(8, 40, 40)
    size = jnp.full((8, 2), 12, jnp.int32)
    alone = label(ovs, ovs.weights, image, (16, 16), size)
    by_batch = NamedSharding(mesh, PartitionSpec("data"))
    weights = jax.device_put(ovs.weights, NamedSharding(mesh, PartitionSpec()))
    spread = label(ovs, weights, jax.device_put(image, by_batch), (16, 16), jax.device_put(size, by_batch))
    assert spread.label.sharding.is_equivalent_to(by_batch, 3)
    np.testing.assert_array_equal(spread.label, alone.label)
    np.testing.assert_allclose(spread.confidence, alone.confidence, atol=1e-5)


def test_fingerprint_names_all_that_decides_the_labels(config, ovs, tmp_path):
    renamed = {**CLASSES, "cat": [["cat", "tomcat"]]}
    changes = {
        "vocabulary": write_vocabulary(tmp_path / "pets.json", renamed),
        "weights": write_clip(tmp_path / "clip.safetensors", seed=1),
        "image_size": 48,
        "normalization": "imagenet",
        "dtype": "bfloat16",
    }
    fingerprints = {build_ovs({**config, key: value}, 3).fingerprint for key, value in changes.items()}
    assert len(fingerprints | {ovs.fingerprint}) == 1 + len(changes)
    scaled = dataclasses.replace(CONFIG, logit_scale=50.0)
    path = write_clip(tmp_path / "scaled.safetensors", config=scaled)
    assert build_ovs({**config, "weights": path}, 3).fingerprint != ovs.fingerprint
    assert build_ovs(dict(config), 3).fingerprint == ovs.fingerprint
    assert model_fingerprint(config) == ovs.fingerprint
    assert {model_fingerprint({**config, key: value}) for key, value in changes.items()} == fingerprints


def test_normalization_is_that_of_the_weights_unless_the_config_says_otherwise(config, ovs):
    assert ovs.normalization == "clip"
    assert build_ovs({**config, "normalization": "imagenet"}, 3).normalization == "imagenet"
    grey = normalize(jnp.full((1, 1, 1, 3), 255 * 0.5), "imagenet")
    np.testing.assert_allclose(grey.ravel(), [0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "num_classes", "message"),
    [
        ({}, 21, "3 classes, but the dataset has 21"),
        ({"name": "lseg"}, 3, r"config\.ovs\.name is 'lseg'"),
        ({"normalization": "voc"}, 3, r"config\.ovs\.normalization is 'voc'"),
        ({"dtype": "int8"}, 3, r"config\.ovs\.dtype is 'int8'"),
        ({"image_size": 7}, 3, r"config\.ovs\.image_size is 7"),
        ({"weights": "missing.safetensors"}, 3, r"missing\.safetensors"),
    ],
)
def test_bad_settings_give_one_clear_error(config, change, num_classes, message):
    with pytest.raises(InputError, match=message):
        build_ovs({**config, **change}, num_classes)


def _labeler_config(config, **changes):
    settings = {"weights": config["weights"], "vocabulary": config["vocabulary"], "normalization": "imagenet"}
    return settings | {"layers": "maskclip", "dtype": "float32"} | changes


def test_the_labeler_computes_as_maskclip_or_as_clip(config):
    own, masked = (
        build_maskclip_labeler(_labeler_config(config, layers=layers), 3, image_size=32) for layers in ("", "maskclip")
    )
    assert (masked.image_size, masked.normalization, masked.num_classes) == (32, "imagenet", 3)
    jax.tree.map(np.testing.assert_array_equal, own.weights, masked.weights)
    image = photos(1, 32, 32)
    clip = dataclasses.replace(load_clip(config["weights"]), config=CONFIG)
    exact = dataclasses.replace(CONFIG, visual=dataclasses.replace(CONFIG.visual, **MASKCLIP))
    words = load_vocabulary(config["vocabulary"])
    for found, settings_ in ((own, CONFIG), (masked, exact)):
        expected = make_maskclip(
            dataclasses.replace(clip, config=settings_), words, image_size=32, normalization="imagenet"
        )
        np.testing.assert_array_equal(found.scores(found.weights, image), expected.scores(expected.weights, image))
    assert np.any(own.scores(own.weights, image) != masked.scores(masked.weights, image))


def test_the_labeler_refuses_unknown_layers(config):
    with pytest.raises(InputError, match=r"config\.clip\.layers is 'vit'; choose one of '', 'maskclip'"):
        build_maskclip_labeler(_labeler_config(config, layers="vit"), 3, image_size=32)


def test_the_labeler_names_all_invalid_settings_of_its_section(config):
    message = (
        r"config\.clip\.normalization is 'voc'; .*\nconfig\.clip\.dtype is 'int8'; choose one of 'bfloat16', 'float"
    )
    with pytest.raises(InputError, match=message):
        build_maskclip_labeler(_labeler_config(config, normalization="voc", dtype="int8"), 3, image_size=32)


def test_cached_labels_of_the_former_name_stay_valid(config, ovs, caplog):
    former = build_ovs({**config, "name": "dense_clip"}, 3)
    assert "config.ovs.name=dense_clip is deprecated" in caplog.text
    assert "Write config.ovs.name=maskclip" in caplog.text
    assert former.fingerprint == ovs.fingerprint
    # Of the shipped weights, by the rule of the last release with the former name.
    shipped = build_ovs({"name": "maskclip", "weights": "shapes_clip", "vocabulary": "shapes", "image_size": 112}, 9)
    assert shipped.fingerprint == "84b3f7f92f0f5670780bf3cf97c56a9316cb8de0235dcb512f4d2ecb76994a2f"


def test_num_classes_may_be_left_open(config):
    clip = load_clip(config["weights"])
    model = make_maskclip(clip, load_vocabulary(config["vocabulary"]), image_size=40)
    assert model.num_classes == 3
    assert model.concepts_per_class == (3, 2, 2)
    np.testing.assert_allclose(jnp.linalg.norm(model.weights["text"], axis=1), 1, atol=1e-6)
