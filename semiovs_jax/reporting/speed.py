"""Speed of a run: images a second, by device, and model FLOPs utilization (MFU)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from semiovs_jax.runtime.roofline import peak_flops


@dataclass(frozen=True)
class Speed:
    """Turns steps a second into numbers that can be compared between runs and machines.

    Attributes:
      images_per_step: of all streams and devices.
      devices: of the run; empty if unknown.
      flops_per_step: of one device; None if unknown.
    """

    images_per_step: int
    devices: Sequence[jax.Device] = ()
    flops_per_step: float | None = None

    def measured(self, steps_per_second: float | None) -> dict[str, float | None]:
        """Values of the metrics log.

        Args:
          steps_per_second: None before it is known.

        Returns:
          "images_per_second"; where the devices are known, "images_per_second_per_device"; where their FLOPs are known,
          too, "mfu": the FLOPs of a second as a share of what a device computes at most in bfloat16, whatever the dtype
          of the run. None where the speed is.
        """
        scales = {"images_per_second": float(self.images_per_step)}
        if self.devices:
            scales["images_per_second_per_device"] = self.images_per_step / len(self.devices)
            peak = peak_flops(self.devices[0].device_kind)
            if peak and self.flops_per_step:
                scales["mfu"] = self.flops_per_step / peak
        return {name: None if steps_per_second is None else steps_per_second * scale for name, scale in scales.items()}

    def memory(self) -> dict[str, float]:
        """Most memory that this process's first device has used so far, "peak_memory_gib"; empty if unknown."""
        mine = [device for device in self.devices if device.process_index == jax.process_index()]
        stats = mine[0].memory_stats() if mine else None
        return {"peak_memory_gib": stats["peak_bytes_in_use"] / 2**30} if stats and "peak_bytes_in_use" in stats else {}


def format_details(values: Mapping[str, float | None], num_devices: int) -> str:
    """All values of `Speed` but images a second, in a few words; empty without any."""
    words: dict[str, Callable[[float], str]] = {
        "images_per_second_per_device": lambda value: f"{value:.1f} a device" if num_devices > 1 else "",
        "mfu": lambda value: f"MFU {100 * value:.1f} %",
        "peak_memory_gib": lambda value: f"peak {value:.2f} GiB",
    }
    known = [(text, value) for name, text in words.items() if (value := values.get(name)) is not None]
    return ", ".join(filter(None, (text(value) for text, value in known)))
