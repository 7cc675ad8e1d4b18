"""DeepLabV3+: eval and train forwards, odd and even sizes, perturbed features, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models import Functional
from semiovs_jax.models.deeplab.params import STUDENT_RULES, convert_student, infer_architecture
from semiovs_jax.models.functional import PyTree
from semiovs_jax.weights.keys import find_rule, flatten
from tests.golden import Golden


def nchw(x: jax.Array) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def summaries(name: str, logits: jax.Array) -> dict[str, np.ndarray]:
    """Every third pixel of full-size logits, and mean, standard deviation and largest magnitude of all."""
    z = nchw(logits)
    stats = [z.mean(dtype=np.float64), z.std(dtype=np.float64), np.abs(z).max()]
    return {f"{name}_s": z[:, :, ::3, ::3], f"{name}_stats": np.array(stats, np.float64)}


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Runs every forward that the golden has inputs for, each from the same weights."""
    dtype = np.float64 if double else np.float32
    source, config = golden.state_dict(), golden.meta["config"]
    architecture = infer_architecture(source, dilate=config["replace_stride_with_dilation"], rates=config["dilations"])
    num_classes = golden.shapes["classifier.weight"][0]
    functional, params, batch_stats = Functional.create(architecture.build(num_classes, rngs=nnx.Rngs(0)))
    params, batch_stats = convert_student(source, params, batch_stats, name=golden.path.name)
    params, batch_stats = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, batch_stats))

    forward = jax.jit(functional.apply, static_argnames="train")

    def image(key: str) -> jax.Array:
        return jnp.asarray(golden[key].transpose(0, 2, 3, 1), dtype)

    def edges(name: str, logits: jax.Array) -> dict[str, np.ndarray]:
        z = nchw(logits)
        return summaries(f"{name}/logits", logits) | {
            f"{name}/logits_last_row": z[:, :, -1],
            f"{name}/logits_last_col": z[:, :, :, -1],
        }

    def running(name: str, stats: PyTree) -> dict[str, np.ndarray]:
        flat, found = flatten(stats), {}
        for key in golden.keys:
            prefix, _, theirs = key.partition("/")
            if prefix == name and (rule := find_rule(theirs, STUDENT_RULES)):
                found[key] = np.asarray(flat[rule[1]])
        return found

    outputs = edges("eval", forward(params, batch_stats, image("x"), train=False)[0])
    outputs |= edges("even", forward(params, batch_stats, image("even/x"), train=False)[0])

    logits, stats = forward(params, batch_stats, image("x"), train=True)
    outputs |= edges("train", logits) | running("train", stats)

    kept = [jnp.asarray(golden[f"fp/keep_{level}"], dtype) for level in ("c1", "c4")]
    masks = tuple(jnp.stack([jnp.ones_like(k), 2 * k]) for k in kept)
    (clean, perturbed), stats = forward(params, batch_stats, image("x"), train=True, channel_masks=masks)
    outputs |= edges("fp", clean) | summaries("fp/logits_fp", perturbed) | running("fp", stats)
    return outputs
