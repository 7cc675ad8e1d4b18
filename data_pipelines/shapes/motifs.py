"""Motifs of the embedded benchmark: the patterns on its objects.

A motif is a function of an object's coordinates u, v (float [H, W]; the object has radius 1) and of a number of cycles
a radius, the fineness. It is True in one of the object's two colors.
"""

from collections.abc import Callable

import numpy as np

Motif = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _rings(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return np.hypot(u, v) * cycles % 1 < 0.5


def _checks(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return (np.floor(u * cycles) + np.floor(v * cycles)) % 2 < 1


def _stripes(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    del v
    return u * cycles % 1 < 0.5


def _rays(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return np.arctan2(v, u) / (2 * np.pi) * round(3 * cycles) % 1 < 0.5


def _lattice(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return (u * cycles % 1 < 0.3) | (v * cycles % 1 < 0.3)


def _spots(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return np.hypot(u * cycles % 1 - 0.5, v * cycles % 1 - 0.5) < 0.33


def _ripples(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return (u * cycles + 0.3 * np.sin(2 * np.pi * v * cycles * 0.7)) % 1 < 0.5


def _chevrons(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return (u * cycles + np.abs(v * cycles % 2 - 1)) % 1 < 0.5


def _frames(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) * cycles % 1 < 0.5


def _plaid(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return (u * cycles % 1 < 0.5) ^ (v * cycles % 1 < 0.25)


def _bricks(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    row = np.floor(v * cycles)
    return (v * cycles % 1 < 0.2) | ((0.6 * u * cycles + 0.5 * (row % 2)) % 1 < 0.15)


def _spiral(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return (np.hypot(u, v) * cycles + np.arctan2(v, u) / (2 * np.pi)) % 1 < 0.5


def _pluses(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    x, y = np.abs(u * cycles % 1 - 0.5), np.abs(v * cycles % 1 - 0.5)
    return (np.minimum(x, y) < 0.12) & (np.maximum(x, y) < 0.4)


def _dashes(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    row = np.floor(v * cycles)
    return (v * cycles % 1 < 0.45) & ((0.7 * u * cycles + 0.5 * (row % 2)) % 1 < 0.6)


def _diamonds(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return np.abs(u * cycles % 1 - 0.5) + np.abs(v * cycles % 1 - 0.5) < 0.4


def _halves(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    del v, cycles
    return u > 0


def _wedges(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    return (u * cycles % 1) + (v * cycles % 1) < 1


def _eyes(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    radius = np.hypot(0.8 * u * cycles % 1 - 0.5, 0.8 * v * cycles % 1 - 0.5)
    return (radius > 0.22) & (radius < 0.42)


def _weave(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    along_u = _checks(u, v, cycles)
    return np.where(along_u, 3 * u * cycles % 1 < 0.5, 3 * v * cycles % 1 < 0.5)


def _scales(u: np.ndarray, v: np.ndarray, cycles: float) -> np.ndarray:
    row = np.floor(v * cycles)
    x = (u * cycles + 0.5 * (row % 2)) % 1 - 0.5
    return np.abs(np.hypot(x, v * cycles % 1) - 0.5) < 0.15


MOTIFS: dict[str, Motif] = {
    "circle": _rings,
    "square": _checks,
    "triangle": _stripes,
    "star": _rays,
    "cross": _lattice,
    "heart": _spots,
    "crescent": _ripples,
    "arrow": _bricks,
}
"""The motif of each target class."""

START_MOTIFS: dict[str, Motif] = {
    "ring": _frames,
    "semicircle": _plaid,
    "teardrop": _halves,
    "hourglass": _spiral,
    "gear": _pluses,
    "flower": _dashes,
    "bolt": _diamonds,
    "chevron": _chevrons,
    "elbow": _wedges,
    "bar": _eyes,
    "tee": _weave,
    "pie": _scales,
}
"""The motif of each class of the images that students are pretrained on: outlines of distractors, other motifs."""
