import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models import FAMILIES, Functional, build_student, find_families
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh
from semiovs_jax.weights.keys import flatten, unflatten
from tests.golden import Golden, assert_matches, golden_path
from tests.replays import deeplab

CONFIG = {"backbone": "resnet_tiny", "dtype": "float32", "remat": "none"}
CLASSES = 5


def weights(shapes: Any) -> Any:
    """Random weights of a model in mid-training: no zero biases, no unit scales. Drawn without compiling anything."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in flatten(shapes).items():
        value = rng.normal(size=leaf.shape)
        match path.rpartition("/")[2]:
            case "kernel":
                value *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
            case "scale" | "var":
                value = 1 + 0.1 * value
            case _:
                value *= 0.1
        flat[path] = value.astype(np.float32)
    return unflatten(flat)


@functools.cache
def student(**changes: Any) -> tuple[Callable, Any, Any]:
    """A tiny student's jitted `apply`, its parameters and statistics."""
    module = nnx.eval_shape(lambda: build_student({**CONFIG, **changes}, CLASSES, image_size=32, rngs=nnx.Rngs(0)))
    functional, params, stats = Functional.create(module)
    return jax.jit(functional.apply, static_argnames="train"), weights(params), weights(stats)


def images(count: int, height: int, width: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, height, width, 3)), jnp.float32)


@pytest.mark.slow
def test_golden():
    golden = Golden(golden_path("deeplab_r50_forward"))
    assert_matches(golden, deeplab.replay(golden, double=False))


def test_padded_forward_equals_unpadded():
    apply, params, stats = student()
    sizes = np.array([[65, 49], [38, 64], [50, 33]], np.int32)
    x = np.array(images(3, 66, 66))
    padded = np.asarray(apply(params, stats, jnp.asarray(x), train=False, size=jnp.asarray(sizes))[0])
    for i, (height, width) in enumerate(sizes):
        alone, _ = apply(params, stats, jnp.asarray(x[i : i + 1, :height, :width]), train=False)
        assert np.abs(alone).max() > 1
        np.testing.assert_allclose(padded[i, :height, :width], alone[0], atol=1e-4, rtol=0)


def test_what_lies_in_the_padding_does_not_matter():
    apply, params, stats = student()
    size = jnp.array([[40, 31]])
    x = images(1, 48, 48)
    other = jnp.where(jnp.arange(48)[:, None] < 31, x, 1e3)
    clean, dirty = (apply(params, stats, v, train=False, size=size)[0] for v in (x, other))
    np.testing.assert_array_equal(clean[:, :40, :31], dirty[:, :40, :31])


def test_true_sizes_are_refused_in_training():
    apply, params, stats = student()
    with pytest.raises(ValueError, match="size is for evaluation"):
        apply(params, stats, images(2, 32, 32), train=True, size=jnp.full((2, 2), 32))


def dropout_masks(perturbed_channels: tuple[int, ...], count: int, *, seed: int = 2) -> tuple[jax.Array, ...]:
    """Masks [2, count, C] of UniMatch's feature perturbation: ones, and dropout of rate 1/2."""
    rng = np.random.default_rng(seed)
    kept = [rng.random((count, channels)) < 0.5 for channels in perturbed_channels]
    return tuple(jnp.stack([jnp.ones(k.shape), 2.0 * jnp.asarray(k)]) for k in kept)


def assert_one_decoder_pass_for_all_variants(
    apply: Callable, params: Any, stats: Any, x: jax.Array, masks: tuple[jax.Array, ...]
) -> None:
    """Any number of variants gives, in eval mode, what each of them gives alone; ones give the plain logits."""
    plain, _ = apply(params, stats, x, train=False)
    pair, unchanged = apply(params, stats, x, train=False, channel_masks=masks)
    assert pair.shape == (2, *plain.shape)
    np.testing.assert_allclose(pair[0], plain, atol=1e-4)
    assert np.abs(np.asarray(pair[1] - pair[0])).max() > 1e-2
    for order in ([1], [1, 0, 1]):
        found, _ = apply(params, stats, x, train=False, channel_masks=tuple(m[np.array(order)] for m in masks))
        np.testing.assert_allclose(found, np.asarray(pair)[order], atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, unchanged, stats)


def test_channel_masks():
    apply, params, stats = student()
    module = nnx.eval_shape(lambda: build_student(CONFIG, CLASSES, image_size=32, rngs=nnx.Rngs(0)))
    x = images(2, 32, 32)
    masks = dropout_masks(module.perturbed_channels, 2)
    assert_one_decoder_pass_for_all_variants(apply, params, stats, x, masks)
    dropped, _ = apply(params, stats, x, train=False, channel_masks=tuple(0 * m[:1] for m in masks))
    # With no feature left, all that remains is a constant that the biases make.
    np.testing.assert_allclose(dropped[0, :, 16, 16], dropped[0, ::-1, 16, 16], atol=1e-5)


def test_the_statistics_of_the_decoder_cover_all_variants():
    """In train mode the decoder normalizes clean and dropped features together, as one batch."""
    apply, params, stats = student()
    graph = nnx.eval_shape(lambda: build_student(CONFIG, CLASSES, image_size=32, rngs=nnx.Rngs(0)))
    masks = dropout_masks(graph.perturbed_channels, 2)
    graphdef = nnx.graphdef(graph)

    @jax.jit
    def expected(params: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        module = nnx.view(nnx.merge(graphdef, params, stats), use_running_average=False)
        features, _ = module.backbone(x)
        levels = []
        for level, (_, kept) in zip((features[0], features[-1]), masks, strict=True):
            dropped = level * kept[:, None, None, :]
            levels.append(jnp.stack([level, dropped], axis=1).reshape(-1, *level.shape[1:]))
        logits = resize_bilinear(module._decode(*levels, None, None), x.shape[1:3], align_corners=True)
        return jnp.stack([logits[::2], logits[1::2]]), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    x = images(2, 32, 32)
    found = apply(params, stats, x, train=True, channel_masks=masks)
    jax.tree.map(np.testing.assert_array_equal, found, expected(params, stats, x))


def count_recomputed(function: Callable, *arguments: Any) -> int:
    """Number of parts of a function that the backward pass computes again."""
    return sum(
        equation.primitive.name in ("checkpoint", "remat2") for equation in jax.make_jaxpr(function)(*arguments).eqns
    )


# Of 4 blocks, the stem and the decoder.
@pytest.mark.parametrize(("remat", "parts"), [("blocks", 4), ("full", 6)])
def test_remat_changes_nothing_but_memory(remat, parts):
    def gradient(remat):
        apply, params, stats = student(remat=remat)
        forward = functools.partial(apply.__wrapped__, train=True)
        assert count_recomputed(forward, params, stats, images(2, 33, 33)) == (0 if remat == "none" else parts)

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def loss(params):
            logits, new_stats = apply(params, stats, images(2, 33, 33), train=True)
            return jnp.square(logits).mean(), new_stats

        return loss(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient(remat), gradient("none"))


def dtypes(tree: Any) -> set[str]:
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def test_bfloat16_keeps_statistics_and_logits_in_float32():
    apply, params, stats = student(dtype="bfloat16")
    x = images(2, 32, 32)
    assert dtypes(jax.eval_shape(functools.partial(apply, train=True), params, stats, x)) == {"float32"}
    logits = apply(params, stats, x, train=False)[0]
    exact = student()[0](params, stats, x, train=False)[0]
    error = np.abs(np.asarray(logits - exact)).mean() / np.abs(np.asarray(exact)).mean()
    assert 1e-4 < error < 0.05


def test_float64_stays_float64():
    apply, params, stats = student()
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, stats, images(2, 32, 32)))
        assert dtypes(jax.eval_shape(functools.partial(apply, train=True), *double)) == {"float64"}


def test_batch_statistics_cover_a_sharded_batch():
    apply, params, stats = student()
    x = images(8, 32, 32)
    alone, stats_alone = apply(params, stats, x, train=True)
    sharded, stats_sharded = apply(params, stats, jax.device_put(x, batch_sharding(make_mesh())), train=True)
    assert len(sharded.sharding.device_set) == jax.device_count() == 8
    np.testing.assert_allclose(alone, sharded, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats_alone, stats_sharded)


def test_parameter_groups():
    module = nnx.eval_shape(lambda: build_student(CONFIG, CLASSES, image_size=32, rngs=nnx.Rngs(0)))
    params = Functional.create(module)[1]
    groups = module.parameter_groups(params)
    assert jax.tree.structure(groups) == jax.tree.structure(params)
    for path, group in flatten(groups).items():
        assert group == ("backbone" if path.startswith("backbone/") else "head")


@pytest.mark.parametrize(("backbone", "millions"), [("resnet50", 40.4), ("resnet101", 59.4)])
def test_published_sizes(backbone, millions):
    # Parameters of the reference's DeepLabV3+ with 21 classes, in UniMatch's README: 40.5M and 59.5M.
    config = {**CONFIG, "backbone": backbone}
    module = nnx.eval_shape(lambda: build_student(config, 21, image_size=321, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert count == pytest.approx(millions * 1e6, rel=0.01)


def test_unknown_names_are_told():
    with pytest.raises(InputError, match=r"config\.model\.backbone is 'vgg'.*resnet101"):
        build_student({**CONFIG, "backbone": "vgg"}, CLASSES, image_size=32, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"config\.model\.dtype is 'float16'"):
        build_student({**CONFIG, "dtype": "float16"}, CLASSES, image_size=32, rngs=nnx.Rngs(0))
    papers, plain = {"resnet50", "resnet101"}, {"resnet18", "resnet34", "resnet50_v1b", "resnet101_v1b"}
    assert set(FAMILIES) == {*papers, *plain, "resnet_tiny", "clip_vit_b16", "clip_vit_shapes"}


def write_family(root: Path, package: str, family: str, source: str) -> list[str]:
    """Adds a family to a package that is only on disk; returns the package's `__path__`."""
    folder = root / package / family
    folder.mkdir(parents=True)
    (root / package / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "student.py").write_text(source)
    return [str(root / package)]


def test_a_family_is_found_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = write_family(tmp_path, "toy_families", "unet", "STUDENTS = {'unet_small': 1, 'unet_large': 2}")
    (tmp_path / "toy_families/layers.py").write_text("raise AssertionError('only families are imported')")
    (tmp_path / "toy_families/towers").mkdir()
    (tmp_path / "toy_families/towers/__init__.py").touch()
    families = find_families("toy_families", path)
    assert set(families) == {"unet_small", "unet_large"}
    assert families["unet_small"].STUDENTS["unet_small"] == 1


def test_two_families_with_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for family in ("first", "second"):
        path = write_family(tmp_path, "clashing_families", family, "STUDENTS = {'same': None}")
    with pytest.raises(ImportError, match=r"families\.first\.student and .*families\.second\.student .* 'same'"):
        find_families("clashing_families", path)
