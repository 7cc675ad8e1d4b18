"""Random weights of modules in PyTorch."""

import torch
from torch import nn

_SPREAD = 0.1  # of biases, and of the scales of normalizations around 1


@torch.no_grad()
def draw_weights(module: nn.Module, seed: int, layer_scale: float = 0.1) -> None:
    """Overwrites all parameters so that no layer vanishes beside the others.

    Args:
        module: A module on the CPU.
        seed: Seed of the weights.
        layer_scale: Value of ConvNeXt's gamma. Its initial value of 1e-6 would hide the blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.fill_(layer_scale)
        elif parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(_SPREAD * noise + name.endswith("weight"))
