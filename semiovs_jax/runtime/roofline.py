"""Rooflines: the least time that a compiled program takes on a chip (Williams et al., CACM 2009).

Chips form tori of two axes, as square as powers of two allow, with linked ends from 16 chips on, as v5e and v6e have
them; v5p, with three axes, has shorter ways.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

HOP_SECONDS = 1e-6
"""From a chip to its neighbor, at least: "How to Scale Your Model", jax-ml.github.io/scaling-book, chapter "TPUs"."""

_WRAPPED = 16  # chips of an axis from which on its ends are linked
_GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A TPU chip, as cloud.google.com/tpu/docs/system-architecture-tpu-vm describes it.

    Attributes:
      name: as in names of topologies.
      hbm_bytes: its memory.
      flops: bfloat16 FLOPs a second.
      hbm_bandwidth: bytes a second between its memory and its cores.
      link_bandwidth: bytes a second that it sends to other chips over all of its links together.
    """

    name: str
    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float


# By jax.Device.device_kind.
CHIPS = {
    "TPU v5 lite": Chip("v5e", 16 * _GIB, 197e12, 819e9, 200e9),
    "TPU v5": Chip("v5p", 95 * _GIB, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 32 * _GIB, 918e12, 1640e9, 448e9),
}

# Dense bfloat16 FLOPs a second of GPUs, by jax.Device.device_kind: NVIDIA's data sheets, which state twice as many for
# sparse matrices.
_GPU_FLOPS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
}


@dataclass(frozen=True)
class Roofline:
    """The least times of a program on a chip, in seconds; they can overlap.

    Attributes:
      products: of its FLOPs, at the rate of one pass in bfloat16.
      memory: of the bytes that it accesses in the chip's memory.
      links: of its all-reduces.
    """

    products: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The least time of a program whose parts overlap completely."""
        return max(self.products, self.memory, self.links)

    @property
    def apart(self) -> float:
        """The least time of a program whose all-reduces hide behind nothing."""
        return max(self.products, self.memory) + self.links

    @property
    def limit(self) -> str:
        """What takes this time: "products", "memory" or "links"."""
        return max(("products", "memory", "links"), key=lambda part: getattr(self, part))


def roofline(chip: Chip, flops: float, bytes_accessed: float, reduced: Iterable[float], devices: int) -> Roofline:
    """The roofline of a program on each of `devices` chips.

    Args:
      chip: the chip.
      flops: of one device.
      bytes_accessed: in the memory of one device.
      reduced: bytes of the result of each all-reduce of one device. A ring over all links sends each byte
        2 * (devices - 1) / devices times; a small all-reduce takes the time of its hops.
      devices: number of chips that take part in the all-reduces.
    """
    rings, wait = 2 * (devices - 1) / devices, HOP_SECONDS * _hops(devices)
    links = sum(max(rings * size / chip.link_bandwidth, wait) for size in reduced)
    return Roofline(flops / chip.flops, bytes_accessed / chip.hbm_bandwidth, links)


def _hops(devices: int) -> int:
    """Hops of an all-reduce, to the farthest chip and back, axis by axis; 0 for one chip."""
    short = 2 ** int(math.log2(devices) / 2)
    return sum(side if side >= _WRAPPED else 2 * (side - 1) for side in (short, devices // short))


def peak_flops(device_kind: str) -> float | None:
    """Bfloat16 FLOPs a second of a device at most; None if unknown, as of a CPU.

    Args:
      device_kind: of `jax.Device`.
    """
    chip = CHIPS.get(device_kind)
    return chip.flops if chip else _GPU_FLOPS.get(device_kind)
