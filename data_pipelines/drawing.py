"""Draws the images of the embedded benchmark: outlines, textures, and two domains to combine them.

A scene is a textured ground with a few objects on it. What tells the classes apart is the outline alone:
size, rotation, color and texture are drawn independently of the class. The two domains share outlines
and nothing else: grounds, colors, fills, scales and the set of classes differ.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_pipelines.outlines import DISTRACTORS, TARGETS, UNIT_OUTLINES, Loop, area

BACKGROUND = 0
IGNORE_INDEX = 255
SCENE_CLASSES = ("background", *TARGETS, *DISTRACTORS)
"""What the label of a scene counts: the target vocabulary first, then the distractors."""

_SUPERSAMPLING = 3


# --- textures: float32 [H, W] in [0, 1], blended between two colors ---


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth value noise with features of about `cell` pixels."""
    grid = rng.random((max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)), np.float32)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)


def _phase(rng: np.random.Generator, height: int, width: int, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Two orthogonal phase planes (in periods) of a pattern turned by a random angle."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32) / period
    u = x * np.cos(angle) + y * np.sin(angle) + rng.random()
    v = -x * np.sin(angle) + y * np.cos(angle) + rng.random()
    return u.astype(np.float32), v.astype(np.float32)


def _cloud(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = _noise(rng, height, width, rng.uniform(20, 50))
    return 0.6 * coarse + 0.4 * _noise(rng, height, width, rng.uniform(4, 10))


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return 0.3 * _noise(rng, height, width, 30) + 0.7 * _noise(rng, height, width, rng.uniform(1.5, 3.0))


def _waves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, _ = _phase(rng, height, width, rng.uniform(6, 18))
    bent = u + 1.2 * _noise(rng, height, width, 35)
    return 0.5 + 0.5 * np.sin(2 * np.pi * bent)


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, v = _phase(rng, height, width, rng.uniform(8, 20))
    return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)


def _flat(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.full((height, width), rng.random(), np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, _ = _phase(rng, height, width, max(height, width))
    return (u - u.min()) / max(float(np.ptp(u)), 1e-6)


def _hatching(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, _ = _phase(rng, height, width, rng.uniform(4, 8))
    return (u % 1 < 0.45).astype(np.float32)


def _dots(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, v = _phase(rng, height, width, rng.uniform(5, 9))
    return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(np.float32)


def _graph_paper(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, v = _phase(rng, height, width, rng.uniform(12, 24))
    return ((u % 1 < 0.08) | (v % 1 < 0.08)).astype(np.float32)


Texture = Callable[[np.random.Generator, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Domain:
    """Where images come from: everything but the outlines of the target classes.

    Attributes:
      sides: range of image height and width, pixels.
      objects: range of the number of objects, both ends included.
      radius: range of an object's radius as a fraction of the geometric mean of the image's sides.
      stretch: largest log ratio of an object's two axes.
      grounds: textures of the ground.
      fills: textures of the objects.
      value: range of a ground color's brightness (the V of HSV).
      ground_saturation: range of a ground color's saturation.
      fill_saturation: range of an object color's saturation.
      contrast: smallest distance between the mean colors of object and ground, of 255 a channel (RMS).
      outlined: probability that an object has a drawn contour.
      distractors: probability that an object is of a class outside the target vocabulary.
      blur: largest standard deviation of the camera's blur, pixels.
      sensor_noise: largest standard deviation of the pixel noise, gray levels.
    """

    sides: tuple[int, int] = (100, 200)
    objects: tuple[int, int] = (1, 4)
    radius: tuple[float, float] = (0.11, 0.26)
    stretch: float = 0.3
    grounds: tuple[Texture, ...] = (_cloud, _grain, _waves, _checks)
    fills: tuple[Texture, ...] = (_cloud, _grain, _waves, _checks)
    value: tuple[float, float] = (0.2, 0.9)
    ground_saturation: tuple[float, float] = (0.1, 0.8)
    fill_saturation: tuple[float, float] = (0.1, 0.8)
    contrast: float = 45.0
    outlined: float = 0.0
    distractors: float = 0.0
    blur: float = 0.9
    sensor_noise: float = 10.0


TARGET_DOMAIN = Domain()
"""Photograph-like: objects and grounds share textures and colors; no contours."""

OOD_DOMAIN = Domain(
    objects=(2, 5),
    radius=(0.09, 0.32),
    stretch=0.15,
    grounds=(_flat, _gradient, _graph_paper, _dots),
    fills=(_flat, _gradient, _hatching, _dots),
    value=(0.05, 1.0),
    ground_saturation=(0.0, 0.3),
    fill_saturation=(0.5, 1.0),
    contrast=60.0,
    outlined=0.6,
    distractors=0.5,
    blur=0.0,
    sensor_noise=2.0,
)
"""Drawing-like: pale grounds, saturated flat, hatched or dotted fills, contours, and distractors."""


def _color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """A random color, float32 [3] in 0..255, hue uniform."""
    h, s, v = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.abs((h * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return (255 * v * (1 - s + s * np.clip(ramp, 0, 1))).astype(np.float32)


def _color_pair(
    rng: np.random.Generator,
    saturation: tuple[float, float],
    value: tuple[float, float],
    away_from: np.ndarray | None = None,
    contrast: float = 0.0,
) -> np.ndarray:
    """Two related colors, float32 [2, 3]; their mean keeps `contrast` from the color `away_from`."""
    best, best_distance = np.zeros((2, 3), np.float32), -1.0
    for _ in range(16):
        first = _color(rng, saturation, value)
        pair = np.stack([first, first + 0.45 * (_color(rng, saturation, value) - first)])
        distance = np.inf if away_from is None else float(np.sqrt(np.mean((pair.mean(0) - away_from) ** 2)))
        if distance >= contrast:
            return pair
        if distance > best_distance:
            best, best_distance = pair, distance
    return best


def _paint(texture: np.ndarray, colors: np.ndarray) -> np.ndarray:
    return colors[0] + texture[..., None] * (colors[1] - colors[0])


def _rasterize(loops: Sequence[Loop], height: int, width: int, line: float) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the filled outline and of its contour, both float32 [H, W] in [0, 1].

    Args:
      loops: outline in pixels.
      height: image height.
      width: image width.
      line: width of the contour in pixels, drawn inside the outline; 0 draws none.
    """
    k = _SUPERSAMPLING
    fill = Image.new("L", (width * k, height * k))
    contour = Image.new("L", fill.size)
    draw_fill, draw_contour = ImageDraw.Draw(fill), ImageDraw.Draw(contour)
    for number, loop in enumerate(loops):
        points = [tuple(point) for point in (loop * k).tolist()]
        draw_fill.polygon(points, fill=0 if number else 255)
        if line:
            # The line is centered on the loop; its outer half is cut off below.
            draw_contour.line([*points, points[0], points[1]], fill=255, width=round(2 * line * k), joint="curve")
    covered = np.asarray(fill.reduce(k), np.float32) / 255
    if not line:
        return covered, np.zeros_like(covered)
    return covered, np.minimum(covered, np.asarray(contour.reduce(k), np.float32) / 255)


def _placed_outline(
    rng: np.random.Generator, name: str, domain: Domain, height: int, width: int
) -> tuple[list[Loop], float]:
    """An outline stretched, turned and moved at random, in pixels, and its radius."""
    radius = rng.uniform(*domain.radius) * np.sqrt(height * width)
    stretch = np.exp(rng.uniform(-0.5, 0.5) * domain.stretch)
    axis, turn = rng.uniform(0, 2 * np.pi, 2)

    def rotation(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    matrix = rotation(turn) @ rotation(-axis) @ np.diag([stretch, 1 / stretch]) @ rotation(axis)
    center = rng.uniform([0.06 * width, 0.06 * height], [0.94 * width, 0.94 * height])
    return [radius * loop @ matrix.T + center for loop in UNIT_OUTLINES[name]], radius


def _void_border(instances: np.ndarray) -> np.ndarray:
    """True where an 8-neighbor belongs to another instance: a border of two pixels, as VOC draws it."""
    padded = np.pad(instances, 1, mode="edge")
    h, w = instances.shape
    border = np.zeros((h, w), bool)
    for dy in range(3):
        for dx in range(3):
            border |= padded[dy : dy + h, dx : dx + w] != instances
    return border


def _class_index(rng: np.random.Generator, domain: Domain) -> int:
    if rng.random() < domain.distractors:
        return 1 + len(TARGETS) + int(rng.integers(len(DISTRACTORS)))
    return 1 + int(rng.integers(len(TARGETS)))


def draw_scene(
    rng: np.random.Generator,
    domain: Domain,
    size: tuple[int, int] | None = None,
    *,
    min_visible: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image with its label.

    Args:
      rng: source of all randomness.
      domain: what to draw.
      size: (height, width) in pixels; drawn from `domain.sides` if None.
      min_visible: least visible fraction of every object, in spite of later objects and image borders.

    Returns:
      image uint8 [H, W, 3] RGB, and label uint8 [H, W]: an index of `SCENE_CLASSES`, or 255 on a border of
      two pixels around every object.
    """
    height, width = size or (int(side) for side in rng.integers(domain.sides[0], domain.sides[1] + 1, 2))
    ground_colors = _color_pair(rng, domain.ground_saturation, domain.value)
    ground = domain.grounds[rng.integers(len(domain.grounds))]
    image = _paint(ground(rng, height, width), ground_colors)
    instances = np.zeros((height, width), np.uint8)
    classes, areas = [BACKGROUND], [0.0]

    for _ in range(int(rng.integers(domain.objects[0], domain.objects[1] + 1))):
        index = _class_index(rng, domain)
        for _ in range(12):
            loops, radius = _placed_outline(rng, SCENE_CLASSES[index], domain, height, width)
            size_px = area(loops[0]) - sum(area(hole) for hole in loops[1:])
            line = max(1.5, 0.1 * radius) if rng.random() < domain.outlined else 0.0
            covered, contour = _rasterize(loops, height, width, line)
            painted = np.where(covered >= 0.5, len(classes), instances)
            visible = np.bincount(painted.ravel(), minlength=len(classes) + 1)[1:]
            if np.all(visible >= min_visible * np.array([*areas[1:], size_px])):
                break
        else:
            continue  # no room left
        fill = domain.fills[rng.integers(len(domain.fills))]
        colors = _color_pair(rng, domain.fill_saturation, domain.value, ground_colors.mean(axis=0), domain.contrast)
        image += covered[..., None] * (_paint(fill(rng, height, width), colors) - image)
        image += contour[..., None] * (_color(rng, (0.0, 1.0), (0.0, 0.35)) - image)
        instances = painted.astype(np.uint8)
        classes.append(index)
        areas.append(size_px)

    label = np.asarray(classes, np.uint8)[instances]
    label[_void_border(instances)] = IGNORE_INDEX
    return _photograph(rng, image, domain), label


def _photograph(rng: np.random.Generator, image: np.ndarray, domain: Domain) -> np.ndarray:
    """Blur and pixel noise of a camera; uint8 [H, W, 3]."""
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    if domain.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, domain.blur)))
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, domain.sensor_noise)
    return np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8)
