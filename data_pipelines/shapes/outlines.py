"""Outlines of the embedded benchmark's classes: eight of the target vocabulary and the distractors.

An outline is a tuple of loops: the first is filled, the others are holes in it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Loop = np.ndarray  # float64 [P, 2], the closed polygon's corners (x, y) with y pointing down


def _polar(radius: Sequence[float] | np.ndarray, start: float = -np.pi / 2) -> Loop:
    """A loop of corners at equal angles; the radii go around clockwise from the top."""
    radius = np.asarray(radius, np.float64)
    angle = start + 2 * np.pi * np.arange(len(radius)) / len(radius)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _arc(start_degrees: float, stop_degrees: float, corners: int = 24) -> Loop:
    angle = np.radians(np.linspace(start_degrees, stop_degrees, corners))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _heart() -> Loop:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1)


def _crescent() -> Loop:
    # A unit disk less a disk of radius 0.78 that is 0.6 to the right; the circles intersect at these angles.
    return np.concatenate([_arc(51.2, 308.8, 32), 0.78 * _arc(271.9, 88.1) + [0.6, 0.0]])


def _teardrop() -> Loop:
    return np.concatenate([[[0.0, -2.4]], _arc(-20, 200)])


def _flower() -> Loop:
    angle = 2 * np.pi * np.arange(60) / 60
    return _polar(0.72 + 0.28 * np.cos(5 * angle))


_OUTLINES: dict[str, tuple[Any, ...]] = {
    # Target vocabulary.
    "circle": (_polar(np.ones(40)),),
    "square": (_polar(np.ones(4)),),
    "triangle": (_polar(np.ones(3)),),
    "star": (_polar(np.tile([1.0, 0.5], 5)),),
    "cross": ([(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1),
               (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)],),
    "heart": (_heart(),),
    "crescent": (_crescent(),),
    "arrow": ([(0, -3), (2.6, -0.2), (1.3, -0.2), (1.3, 3), (-1.3, 3), (-1.3, -0.2), (-2.6, -0.2)],),
    # Distractors.
    "ring": (_polar(np.ones(40)), _polar(np.full(32, 0.58))),
    "semicircle": (_arc(0, 180),),
    "teardrop": (_teardrop(),),
    "hourglass": ([(-2, -3), (2, -3), (0.45, 0), (2, 3), (-2, 3), (-0.45, 0)],),
    "gear": (_polar(np.tile([1.0, 1.0, 0.72, 0.72], 8)), _polar(np.full(20, 0.3))),
    "flower": (_flower(),),
    "bolt": ([(0.6, -3), (-1.7, 0.5), (-0.2, 0.5), (-0.9, 3), (1.8, -0.9), (0.3, -0.9), (1.6, -3)],),
    "chevron": ([(0, -2), (2.6, 0.6), (2.6, 2.4), (0, -0.2), (-2.6, 2.4), (-2.6, 0.6)],),
    "elbow": ([(-2, -2.4), (-0.5, -2.4), (-0.5, 0.9), (2.4, 0.9), (2.4, 2.4), (-2, 2.4)],),
    "bar": ([(-3, -0.75), (3, -0.75), (3, 0.75), (-3, 0.75)],),
    "tee": ([(-2.5, -2.4), (2.5, -2.4), (2.5, -0.9), (0.75, -0.9),
             (0.75, 2.4), (-0.75, 2.4), (-0.75, -0.9), (-2.5, -0.9)],),
    "pie": (np.concatenate([[[0.0, 0.0]], _arc(35, 325, 32)]),),
}  # fmt: skip

TARGETS = ("circle", "square", "triangle", "star", "cross", "heart", "crescent", "arrow")
DISTRACTORS = tuple(name for name in _OUTLINES if name not in TARGETS)


def area(loop: Loop) -> float:
    """Area inside a loop, in the square of its unit."""
    x, y = loop[:, 0], loop[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _unit(outline: tuple[Any, ...]) -> tuple[Loop, ...]:
    """Centers an outline and scales it to unit size, so that the size does not depend on the class.

    The size is the mean of the outer radius and the radius of a disk of equal area: thin outlines get
    neither tiny nor much longer than the others.
    """
    loops = [np.asarray(loop, np.float64) for loop in outline]
    center = (loops[0].min(axis=0) + loops[0].max(axis=0)) / 2
    loops = [loop - center for loop in loops]
    radius = np.linalg.norm(loops[0], axis=1).max()
    size = 0.5 * (radius + np.sqrt(area(loops[0]) / np.pi))
    return tuple(loop / size for loop in loops)


UNIT_OUTLINES = {name: _unit(outline) for name, outline in _OUTLINES.items()}
