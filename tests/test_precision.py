"""float32 is float32 on every device: the precision that compiled programs ask of each product."""

import functools
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import demo
from data_pipelines.errors import InputError
from semiovs_jax.evaluated import open_evaluation
from semiovs_jax.evaluation.evaluator import Evaluator
from semiovs_jax.experiment import abstract_inputs
from semiovs_jax.models import Functional
from semiovs_jax.models.clip.text import ClipTextConfig
from semiovs_jax.models.layers import ConvNorm
from semiovs_jax.ovs import build_ovs
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.text import embed_prompts
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary
from semiovs_jax.runtime.sharding import make_mesh
from semiovs_jax.train_step import make_train_step
from tests.experiment import shrunk_demo

_PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution)\(?.* precision.*?(HIGHEST|HIGH|DEFAULT)")


def _precisions(traced: jax.stages.Traced, platform: str = "tpu") -> list[str]:
    """The precision of each product in the program for a platform."""
    lines = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    found = [match[1] for line in products if (match := _PRODUCT.search(line))]
    assert len(found) == len(products) > 0
    return found


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(jax.devices()[:1])


def _config(**changes: object) -> ConfigDict:
    config = demo.get_config().unlock()
    config.update_from_flattened_dict({"batch_size": 2, "data.crop_size": 33, **changes})
    return config.lock()


def _step(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    spec, arguments = abstract_inputs(config, mesh)
    return make_train_step(spec, mesh).trace(*arguments)


def test_every_product_of_a_step_is_exact(mesh: Mesh):
    # Forwards, gradients, and snapshots.
    step = _step(_config(**{"method.name": "prevmatch", "method.ood": "none"}), mesh)
    assert set(_precisions(step, "tpu")) == {"HIGHEST"}


def test_a_faster_mode_is_that_of_the_student_alone(mesh: Mesh):
    supervised = {"method.name": "supervised", "method.ood": "none", "model.matmul_precision": "high"}
    found = _precisions(_step(_config(**supervised), mesh), "cuda")
    assert set(found) == {"HIGHEST", "HIGH"}  # resampling stays exact
    assert found.count("HIGH") > 50


MODELS = {
    "sed": {"weights": "shapes_sed", "image_size": 64},
    "maskclip": {"weights": "shapes_clip", "image_size": 32},
}


def _ovs(name: str, **changes: object) -> OVS:
    return build_ovs({"name": name, "vocabulary": "shapes", **MODELS[name], **changes}, 9)


def _labeling(ovs: OVS) -> jax.stages.Traced:
    image = jax.ShapeDtypeStruct((1, ovs.image_size, ovs.image_size, 3), jnp.float32)
    return jax.jit(functools.partial(ovs.label, label_size=(40, 50))).trace(ovs.weights, image)


def _random_text(config: ClipTextConfig, params: object, words: Vocabulary) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(words.concepts), len(words.templates), config.embed_dim))


@pytest.mark.parametrize("name", MODELS)
def test_every_product_of_labeling_is_exact_unless_asked_for(name: str, monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module(f"semiovs_jax.ovs.{name}")
    monkeypatch.setattr(module, "embed_text", _random_text)  # to compile its tower takes longer
    assert set(_precisions(_labeling(_ovs(name)))) == {"HIGHEST"}
    if name == "maskclip":  # the lighter one
        faster = _ovs(name, matmul_precision="default")
        assert set(_precisions(_labeling(faster))) == {"HIGHEST", "DEFAULT"}


def test_every_product_of_evaluation_is_exact(mesh: Mesh, tmp_path: Path):
    model, evaluator = open_evaluation(shrunk_demo(tmp_path, **{"eval.window": 33, "eval.stride": 20}), mesh)
    assert set(_precisions(_classes(evaluator, *model.weights(model.target)))) == {"HIGHEST"}


def _classes(evaluator: Evaluator, params: object, batch_stats: object) -> jax.stages.Traced:
    batch = {
        "image": jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((2, 64, 64), np.uint8),
        "size": jax.ShapeDtypeStruct((2, 2), np.int32),
    }
    return jax.jit(evaluator._classify, static_argnames="shape").trace(params, batch_stats, batch, shape=(64, 64))


def test_text_is_embedded_exactly():
    asked = []

    def encode(params: jax.Array, ids: jax.Array) -> jax.Array:
        asked.append(jax.config.jax_default_matmul_precision)
        return jax.nn.one_hot(ids[:, 0], 4) @ params + 1

    embed_prompts(encode, jnp.eye(4), load_vocabulary("shapes"), make_tokenizer("bytes", 80))
    assert set(asked) == {"highest"}


@pytest.mark.parametrize(
    ("key", "build"),
    [
        (
            "config.model.matmul_precision",
            lambda mesh: abstract_inputs(_config(**{"model.matmul_precision": "tf32"}), mesh),
        ),
        ("config.ovs.matmul_precision", lambda mesh: _ovs("sed", matmul_precision="tf32")),
        ("config.ovs.matmul_precision", lambda mesh: _ovs("maskclip", matmul_precision="tf32")),
    ],
)
def test_an_unknown_precision_is_refused_with_the_choices(mesh: Mesh, key: str, build):
    with pytest.raises(InputError, match=rf"{key} is 'tf32'; choose one of '?default'?, '?high'?, '?highest'?"):
        build(mesh)


class _Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = ConvNorm(3, 16, 3, rngs=rngs)
        self.linear = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(self.conv(x))


def test_on_the_cpu_no_precision_changes_a_bit():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 33, 33, 3)), jnp.float32)
    found = []
    for precision in ("highest", "default"):
        net, params, stats = Functional.create(_Net(nnx.Rngs(0)), precision)
        loss = lambda p, net=net, stats=stats: jnp.sum(net.apply(p, stats, image, train=True)[0] ** 2)  # noqa: E731
        found.append(jax.jit(jax.value_and_grad(loss))(params))
    jax.tree.map(np.testing.assert_array_equal, *found)
