"""Colors for the classes of a new dataset."""

import numpy as np

_STEP = 15  # between levels of a channel in the colors to choose from

# Linear RGB as people see it who have all cones, or lack one kind: Machado, Oliveira & Fernandes, "A Physiologically-
# based Model for Simulation of Color Vision Deficiency", 2009, severity 1.
_VISIONS = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)

# XYZ of linear sRGB, and the white of CIELAB, D65: IEC 61966-2-1.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _XYZ.sum(1)
_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])


def distinct_colors(count: int) -> np.ndarray:
    """Colors that differ from each other, from black and from white, for the color-blind, too.

    Each color is the one, of a fine grid, with the largest distance to those before it. So the first colors of a longer
    list are those of a shorter one.

    Args:
        count: Number of colors, at most 256.

    Returns:
        uint8 [count, 3], RGB.
    """
    levels = np.arange(0, 256, _STEP, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    seen = _as_seen(grid)
    black, white = 0, len(grid) - 1
    distance = np.minimum(_distances(seen, black), _distances(seen, white))
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, _distances(seen, chosen[-1]))
    return grid[chosen]


def color_distances(colors: np.ndarray) -> np.ndarray:
    """CIE 1976 differences of all pairs of colors (uint8 [N, 3]), for whom they differ least; float64 [N, N]."""
    seen = _as_seen(colors)
    return np.stack([_distances(seen, index) for index in range(len(colors))])


def _as_seen(colors: np.ndarray) -> np.ndarray:
    """CIELAB coordinates of RGB colors, [N, 3], by kind of vision: [N, kinds, 3]; L* without its constant."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    visible = np.einsum("kij,nj->nki", _VISIONS, linear).clip(0, 1)
    xyz = visible @ _XYZ.T / _WHITE
    return np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29) @ _LAB.T


def _distances(seen: np.ndarray, index: int) -> np.ndarray:
    """Distance of each color to one of them, for whom it is least."""
    return np.linalg.norm(seen - seen[index], axis=-1).min(-1)
