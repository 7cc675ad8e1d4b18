"""The views of a step as tensors on a device."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from semiovs_jax.benchmarks.step.flat_views import IGNORE_INDEX, deinterleaved
from semiovs_jax.benchmarks.step.pytorch.consistency import Target

# Snapshots and their weights if the views name none: two of 1 to 3, the mean number of the reference.
_TYPICAL_DRAW = ((0, 0.5), (1, 0.5))


@dataclasses.dataclass(frozen=True)
class Placed:
    """The views of a step; the names are those of `semiovs_jax.views.Views`.

    Attributes:
      weak, s1, s2: images [N, 3, H, W] by stream.
      valid: bool [N, H, W] by stream.
      label: int64 [N, H, W], ground truth with the ignore index.
      box1, box2: bool [N, H, W], CutMix boxes.
      channel_masks: by level, [k N, C, 1, 1], of the joint forward pass, stream by stream; None without.
      ovs: labels of the OOD images; None without.
      draw: slots and weights of PrevMatch's snapshots, on the host.
    """

    weak: dict[str, torch.Tensor]
    s1: dict[str, torch.Tensor]
    s2: dict[str, torch.Tensor]
    valid: dict[str, torch.Tensor]
    label: torch.Tensor
    box1: torch.Tensor
    box2: torch.Tensor
    channel_masks: tuple[torch.Tensor, ...] | None
    ovs: Target | None
    draw: tuple[tuple[int, float], ...]

    @classmethod
    def create(
        cls, arrays: Mapping[str, np.ndarray], device: str, dtype: torch.dtype, *, channels_last: bool
    ) -> "Placed":
        """Copies the arrays of `flat_views.flatten_views` to a device.

        Args:
          arrays: by name.
          device: of the tensors.
          dtype: of images and masks.
          channels_last: memory layout of the images.
        """
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def image(array: np.ndarray) -> torch.Tensor:
            return torch.tensor(array).permute(0, 3, 1, 2).to(device, dtype, memory_format=layout)

        def plane(array: np.ndarray, kind: torch.dtype) -> torch.Tensor:
            return torch.tensor(array).to(device, kind)

        def masks(array: np.ndarray) -> torch.Tensor:
            dropped = deinterleaved(array[1], len(array[1]) // len(arrays["label"]))
            return torch.tensor(dropped)[:, :, None, None].to(device, dtype)

        labeled = np.where(arrays["valid/labeled"], arrays["label"], IGNORE_INDEX)
        levels = [masks(array) for array in below(arrays, "weak_masks").values()]
        return cls(
            weak={name: image(array) for name, array in below(arrays, "weak").items()},
            s1={name: image(array) for name, array in below(arrays, "s1").items()},
            s2={name: image(array) for name, array in below(arrays, "s2").items()},
            valid={name: plane(array, torch.bool) for name, array in below(arrays, "valid").items()},
            label=plane(labeled, torch.int64),
            box1=plane(arrays["box1"], torch.bool),
            box2=plane(arrays["box2"], torch.bool),
            channel_masks=tuple(levels) or None,
            ovs=_ovs_target(arrays, device, dtype) if "ovs/label" in arrays else None,
            draw=_draw(arrays),
        )


def below(arrays: Mapping[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    """The arrays below `folder`, by the rest of their names."""
    prefix = f"{folder}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _ovs_target(arrays: Mapping[str, np.ndarray], device: str, dtype: torch.dtype) -> Target:
    """The OVS's labels; as in the reference, invalid pixels have class 0."""
    valid = arrays["ovs/label"] != IGNORE_INDEX
    return Target(
        torch.tensor(np.where(valid, arrays["ovs/label"], 0)).to(device, torch.int64),
        torch.tensor(arrays["ovs/confidence"]).to(device, dtype),
        torch.tensor(valid).to(device),
    )


def _draw(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[int, float], ...]:
    if "snapshots/slots" not in arrays:
        return _TYPICAL_DRAW
    return tuple(zip(arrays["snapshots/slots"].tolist(), arrays["snapshots/weights"].tolist(), strict=True))
