"""ImageNet ResNets of torchvision, timm and Hugging Face: the features of the four stages."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models import Functional
from semiovs_jax.models.deeplab.params import infer_architecture
from semiovs_jax.models.deeplab.resnet_params import convert_resnet
from semiovs_jax.weights.keys import fill, flatten
from tests.golden import Golden


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Runs the backbone in eval mode."""
    dtype = np.float64 if double else np.float32
    source = golden.state_dict()
    architecture = infer_architecture(source, dilate=(False, False, golden.meta["dilated"]), name=golden.path.name)
    backbone = nnx.eval_shape(lambda: architecture.build_backbone(rngs=nnx.Rngs(0)))
    function, *shapes = Functional.create(backbone)
    converted = convert_resnet(source, golden.path.name).values
    values = {path.removeprefix("backbone/"): value for path, value in converted.items()}
    assert values.keys() == flatten(shapes[0]).keys() | flatten(shapes[1]).keys()
    weights = [jax.tree.map(lambda a: jnp.asarray(a, dtype), fill(tree, values)) for tree in shapes]
    image = jnp.asarray(golden["x"].transpose(0, 2, 3, 1), dtype)
    (features, _), _ = jax.jit(function.apply, static_argnames="train")(*weights, image, train=False)
    strides = golden.meta["channel_strides"]
    return {
        f"c{i}": np.asarray(x).transpose(0, 3, 1, 2)[:, ::by]
        for i, (x, by) in enumerate(zip(features, strides, strict=True), 1)
    }
