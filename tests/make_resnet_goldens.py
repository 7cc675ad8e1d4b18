"""Writes the goldens of ImageNet ResNets: features of other packages' networks, on formula-made weights.

    pip install 'semiovs-jax[bench]' timm
    python -m tests.make_resnet_goldens

The files are tests/golden/imagenet_resnet*.npz: names and shapes of the state dict, an image, and the features of the
four stages, in float32. Written with torch 2.13, torchvision 0.28, timm 1.0.31 and transformers 5.24.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from transformers import ResNetConfig, ResNetForImageClassification

from tests.golden import _HERE, Golden

SEED = 0
STRIDES = (4, 16, 32, 32)  # channels of each stage that are not stored, between two that are


def _networks() -> Iterator[tuple[str, str, torch.nn.Module, bool, str]]:
    """Depth and package, the network, whether its last stage is dilated, and the names of each block's last scale."""
    basic = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    hugging_face = r"\.{}\.norm.*\.weight$".format
    last = r"^layer\d+\.\d+\.bn{}\.weight$".format
    dilate = {"replace_stride_with_dilation": [False, False, True]}
    yield "resnet18", "timm", timm.create_model("resnet18", output_stride=16), True, last(2)
    yield (
        "resnet18",
        "transformers",
        ResNetForImageClassification(ResNetConfig(**basic)),
        False,
        r"\.1\.norm.*\.weight$",
    )
    yield "resnet34", "torchvision", torchvision.models.resnet34(), False, last(2)
    yield "resnet50", "torchvision", torchvision.models.resnet50(**dilate), True, last(3)
    yield "resnet50", "transformers", ResNetForImageClassification(ResNetConfig()), False, hugging_face(2)
    yield "resnet101", "timm", timm.create_model("resnet101", output_stride=16), True, last(3)


def _features(network: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of the four stages."""
    if isinstance(network, ResNetForImageClassification):
        return list(network.resnet(image, output_hidden_states=True).hidden_states[1:])
    found: list[torch.Tensor] = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda module, inputs, output: found.append(output))
    network(image)
    return found


@torch.no_grad()
def main() -> None:
    """Writes all goldens."""
    torch.set_num_threads(1)
    image = np.random.default_rng(SEED).standard_normal((2, 3, 35, 50)).astype(np.float16)
    for depth, package, network, dilated, last_scale in _networks():
        shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
        damped = [[last_scale, 0.2]]  # activations would grow from block to block
        meta: dict[str, Any] = {
            "what": f"features of the four stages of {package}'s {depth}, every few channels: c1 to c4",
            "fill_seed": SEED,
            "output_scale": damped,
            "channel_strides": STRIDES,
            "dilated": dilated,
            "made_with": {name: importlib.metadata.version(name) for name in ("torch", package)},
        }
        path = _HERE / f"imagenet_{depth}_{package}.npz"
        np.savez_compressed(path, meta=json.dumps(meta), shapes=json.dumps(shapes))
        weights = Golden(path).state_dict()
        network.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        features = _features(network.eval(), torch.tensor(image, dtype=torch.float32))
        stored = {f"c{i}": x[:, ::by].numpy() for i, (x, by) in enumerate(zip(features, STRIDES, strict=True), 1)}
        np.savez_compressed(path, meta=json.dumps(meta), shapes=json.dumps(shapes), x=image, **stored)
        print(f"{path}: {[x.shape for x in stored.values()]}")


if __name__ == "__main__":
    main()
