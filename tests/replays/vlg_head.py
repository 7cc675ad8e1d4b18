"""SemiVL's head on stored features: logits at its own resolution, in the square, and at the image's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.semivl.params import convert_vlg_head, infer_vlg_config
from semiovs_jax.models.semivl.semivl import resize_logits
from semiovs_jax.models.semivl.vlg import VlgHead, similarity, unit
from semiovs_jax.weights.keys import flatten, unflatten
from tests.golden import Golden

_PATCH_SIZE = 16  # of the backbone: an image of the stored features has 16 pixels per patch


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Runs the head; what is stored with a stride is cut to it."""
    config, dtype = golden.meta["config"], np.float64 if double else np.float32
    source = golden.state_dict()
    (pool,) = set(np.atleast_1d(config["pool_size"] or 1).tolist())
    levels = tuple(
        jnp.asarray(golden[key].transpose(0, 2, 3, 1), dtype)
        for key in sorted(key for key in golden.keys if re.fullmatch(r"feat\d", key))
    )
    dense = jnp.asarray(golden["emb"].transpose(0, 2, 3, 1), dtype)
    text = jnp.asarray(golden["text"], dtype)

    architecture = infer_vlg_config(source, num_heads=config["num_heads"], pool=pool)
    widths = [level.shape[-1] for level in levels]
    graph, shapes = nnx.split(
        nnx.eval_shape(lambda: VlgHead(architecture, widths, dense.shape[-1], rngs=nnx.Rngs(0))), nnx.Param
    )
    values = convert_vlg_head(source, flatten(nnx.to_pure_dict(shapes)), name=golden.path.name).values
    params = unflatten({path: jnp.asarray(value, dtype) for path, value in values.items()})

    out = jax.jit(lambda p: nnx.merge(graph, p)(levels, dense, text))(params)
    side = config["img_size"]
    shape = (_PATCH_SIZE * dense.shape[1], _PATCH_SIZE * dense.shape[2])
    planes = {
        "out": out,
        "out_forced": resize_logits(out, side, (side, side)),
        "out_image": resize_logits(out, side, shape),
    }
    words = jax.nn.relu(nnx.merge(graph, params).text(unit(text)))
    outputs = {"sim": np.asarray(similarity(dense, text)), "text_proj": np.asarray(words)}
    for name, plane in planes.items():
        z = np.asarray(plane).transpose(0, 3, 1, 2)
        outputs[f"{name}_stats"] = np.array([z.mean(dtype=np.float64), z.std(dtype=np.float64), np.abs(z).max()])
        for key in golden.keys:
            if match := re.fullmatch(rf"{name}(?:_s(\d+))?", key):
                stride = int(match[1] or 1)
                outputs[key] = z[:, :, ::stride, ::stride]
    return outputs
