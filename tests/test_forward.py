"""The forward passes of a student without batch statistics: less work than the reference's, the same gradient."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import common
from semiovs_jax import methods
from semiovs_jax.forward import Predictions, predict
from semiovs_jax.models import Functional, build_student
from semiovs_jax.runtime.flops import count_flops
from semiovs_jax.views import Views, make_views
from tests.made_up_batch import made_up_batch
from tests.models.test_student import weights

CLASSES, COUNT, SIZE = 3, 2, 32


def _setup(backbone: str) -> tuple[Functional, Any, Any, methods.Method, Views]:
    method = methods.make_method(common.semiovs_unimatch().method)
    architecture = {"backbone": backbone, "dtype": "float32", "remat": "none"}
    module = nnx.eval_shape(lambda: build_student(architecture, CLASSES, image_size=SIZE, rngs=nnx.Rngs(0)))
    student, params, stats = Functional.create(module)
    batch = made_up_batch(method.streams, COUNT, SIZE)
    views = make_views(jax.random.key(0), batch, method, module.perturbed_channels)
    return student, weights(params), weights(stats), method, views


def _loss_of_what_is_read(found: Predictions, method: methods.Method) -> jax.Array:
    read = [found.labeled, *(getattr(found, term.prediction)[term.stream] for term in method.terms)]
    return sum(jnp.mean(jnp.sin(logits + index)) for index, logits in enumerate(read))


def test_what_nobody_reads_is_not_decoded_and_the_gradient_is_the_same():
    student, params, stats, method, views = _setup("clip_vit_shapes")
    assert not student.mixes_images
    whole = dataclasses.replace(student, mixes_images=True)

    def both(params: Any, student: Functional) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            found, new_stats = predict(params, stats, views, student, method)
            return _loss_of_what_is_read(found, method), (found, new_stats)

        return jax.value_and_grad(loss, has_aux=True)(params)

    run = jax.jit(both, static_argnums=1)
    (_, (found, new_stats)), gradient = run(params, student)
    (_, (expected, expected_stats)), expected_gradient = run(params, whole)

    assert set(found.weak) == {"unlabeled"}, "labels of OOD images come from the OVS"
    assert found.labeled_fp is None
    assert expected.labeled_fp is not None
    read = lambda given: (given.labeled, given.weak["unlabeled"], given.fp, given.s1, given.s2, given.frozen)  # noqa: E731
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, read(found), read(expected))
    jax.tree.map(close, (gradient, new_stats), (expected_gradient, expected_stats))
    of_gradient = lambda student: count_flops(lambda params: both(params, student)[1], params)  # noqa: E731
    assert of_gradient(student) < of_gradient(whole)


def test_a_student_with_batch_statistics_decodes_all_variants():
    student, params, stats, method, views = _setup("resnet_tiny")
    assert student.mixes_images
    found, _ = jax.eval_shape(lambda params: predict(params, stats, views, student, method), params)
    assert set(found.weak) == set(found.fp) == {"unlabeled", "ood"}
    assert found.labeled_fp is not None
