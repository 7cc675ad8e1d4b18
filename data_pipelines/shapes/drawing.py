"""Draws the images of the embedded benchmark: outlines, motifs, textures, and the domains that combine them.

A scene is a textured ground with a few objects on it. A target class is an outline and a motif (the pattern on the
object: rings on circles, checks on squares). Size, rotation, colors and the fineness of the motif do not depend on the
class: strong views change colors, so a class told by them could not be learned from such views. Distractors have plain
fills. OOD images are in more styles than target images, as web images are.

Students do not learn outlines and motifs in minutes from random weights. Published ones start from ImageNet; those here
start from weights that have learned other classes, on images of `START_DOMAIN`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_pipelines.shapes.motifs import MOTIFS, START_MOTIFS, Motif
from data_pipelines.shapes.outlines import DISTRACTORS, TARGETS, UNIT_OUTLINES, Loop, area

BACKGROUND = 0
IGNORE_INDEX = 255
SCENE_CLASSES = ("background", *TARGETS, *DISTRACTORS)
"""Classes of the labels of scenes: the target vocabulary first, then the distractors."""

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


def _flat(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.full((height, width), rng.random(), np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, _ = _phase(rng, height, width, max(height, width))
    return (u - u.min()) / max(float(np.ptp(u)), 1e-6)


def _dots(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, v = _phase(rng, height, width, rng.uniform(5, 9))
    return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(np.float32)


def _graph_paper(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    u, v = _phase(rng, height, width, rng.uniform(12, 24))
    return ((u % 1 < 0.08) | (v % 1 < 0.08)).astype(np.float32)


Texture = Callable[[np.random.Generator, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Domain:
    """The style of the images, and the motifs of the classes.

    Attributes:
      sides: range of image height and width, pixels.
      objects: range of the number of objects, both inclusive.
      radius: range of an object's radius as a fraction of the geometric mean of the image's sides.
      stretch: largest log ratio of an object's two axes.
      tilt: largest rotation of an object, degrees, either way.
      grounds: textures of the ground.
      fills: textures of objects whose class has no motif.
      cycles: range of the fineness of a motif, in cycles a radius.
      ground_value: range of a ground color's brightness (the V of HSV).
      fill_value: range of an object color's brightness.
      ground_saturation: range of a ground color's saturation.
      fill_saturation: range of an object color's saturation.
      outlined: probability that an object has a drawn contour.
      distractors: probability that an object is of a class outside the target vocabulary.
      blur: largest standard deviation of the camera's blur, pixels.
      sensor_noise: largest standard deviation of the pixel noise, gray levels.
      motifs: of the classes that have one; the others have fills.
    """

    sides: tuple[int, int] = (100, 200)
    objects: tuple[int, int] = (1, 3)
    radius: tuple[float, float] = (0.22, 0.32)
    stretch: float = 0.2
    tilt: float = 25.0
    grounds: tuple[Texture, ...] = (_cloud, _grain, _waves)
    fills: tuple[Texture, ...] = (_cloud, _grain)
    cycles: tuple[float, float] = (1.8, 2.6)
    ground_value: tuple[float, float] = (0.1, 0.6)
    fill_value: tuple[float, float] = (0.6, 1.0)
    ground_saturation: tuple[float, float] = (0.0, 0.3)
    fill_saturation: tuple[float, float] = (0.4, 1.0)
    outlined: float = 0.0
    distractors: float = 0.0
    blur: float = 0.9
    sensor_noise: float = 8.0
    motifs: Mapping[str, Motif] = dataclasses.field(default_factory=lambda: MOTIFS)


TARGET_DOMAIN = Domain()
"""Photograph-like: dim grounds, bright objects, rough textures, no contours."""

OOD_DOMAIN = Domain(
    objects=(1, 4),
    radius=(0.2, 0.32),
    tilt=30.0,
    grounds=(_cloud, _grain, _waves, _flat, _gradient, _graph_paper, _dots),
    fills=(_flat, _gradient, _cloud, _grain),
    ground_value=(0.1, 1.0),
    fill_value=(0.4, 1.0),
    fill_saturation=(0.3, 1.0),
    outlined=0.4,
    distractors=0.4,
    blur=0.6,
    sensor_noise=5.0,
)
"""Photographs and drawings: grounds of any brightness, more textures, contours, and distractors."""

START_DOMAIN = dataclasses.replace(OOD_DOMAIN, distractors=1.0, motifs=START_MOTIFS)
"""The style of the OOD images with objects of other classes: outlines of distractors, with motifs of their own."""


def _color(
    rng: np.random.Generator,
    saturation: tuple[float, float],
    value: tuple[float, float],
    hue: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """A random color, float32 [3] in 0..255, from ranges of HSV; hue is in turns of the color circle."""
    h, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.abs((h * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return (255 * v * (1 - s + s * np.clip(ramp, 0, 1))).astype(np.float32)


def _tones(rng: np.random.Generator, domain: Domain) -> np.ndarray:
    """The two colors of an object, float32 [2, 3]: one of any hue, and its shade, its complement, white or black."""
    hue = rng.random()
    first, complement = (
        _color(rng, domain.fill_saturation, domain.fill_value, (turned, turned)) for turned in (hue, hue + 0.5)
    )
    white, black = rng.uniform(215, 255), rng.uniform(0, 40)
    pairs = (first, 0.45 * first), (first, complement), (0.75 * first, np.full(3, white)), (first, np.full(3, black))
    return np.stack(pairs[rng.integers(len(pairs))]).astype(np.float32)


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


class _Placed(NamedTuple):
    """An outline placed in an image.

    Attributes:
      loops: its loops, in pixels.
      radius: in pixels.
      to_object: float64 [2, 2], maps pixels from the center to object coordinates, with radius 1.
      center: float64 [2], (x, y) in pixels.
    """

    loops: list[Loop]
    radius: float
    to_object: np.ndarray
    center: np.ndarray

    def coordinates(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The object's coordinates of every pixel, each float64 [H, W]."""
        y, x = np.mgrid[:height, :width] - self.center[::-1, None, None]
        (a, b), (c, d) = self.to_object
        return a * x + b * y, c * x + d * y


def _placed_outline(rng: np.random.Generator, name: str, domain: Domain, height: int, width: int) -> _Placed:
    """An outline stretched, turned and moved at random."""
    radius = rng.uniform(*domain.radius) * np.sqrt(height * width)
    stretch = np.exp(rng.uniform(-0.5, 0.5) * domain.stretch)
    axis, tilt = rng.uniform(0, np.pi), np.radians(rng.uniform(-domain.tilt, domain.tilt))

    def rotation(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    matrix = rotation(tilt) @ rotation(-axis) @ np.diag([stretch, 1 / stretch]) @ rotation(axis)
    center = rng.uniform([0.12 * width, 0.12 * height], [0.88 * width, 0.88 * height])
    loops = [radius * loop @ matrix.T + center for loop in UNIT_OUTLINES[name]]
    return _Placed(loops, radius, np.linalg.inv(radius * matrix), center)


def _fill(rng: np.random.Generator, name: str, placed: _Placed, domain: Domain, height: int, width: int) -> np.ndarray:
    """The pattern of an object, float [H, W] in [0, 1]: the motif of its class, or a random fill for a distractor."""
    if name in domain.motifs:
        return domain.motifs[name](*placed.coordinates(height, width), rng.uniform(*domain.cycles)).astype(np.float32)
    return domain.fills[rng.integers(len(domain.fills))](rng, height, width)


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
    min_visible: float = 0.7,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image with its label.

    Args:
      rng: source of all randomness.
      domain: what to draw.
      size: (height, width) in pixels; drawn from `domain.sides` if None.
      min_visible: fraction of each object that later objects and image borders leave visible, at least.

    Returns:
      image uint8 [H, W, 3] RGB, and label uint8 [H, W]: an index of `SCENE_CLASSES`, or 255 on a border of
      two pixels around every object.
    """
    height, width = size or (int(side) for side in rng.integers(domain.sides[0], domain.sides[1] + 1, 2))
    ground_color = _color(rng, domain.ground_saturation, domain.ground_value)
    ground = domain.grounds[rng.integers(len(domain.grounds))]
    image = _paint(ground(rng, height, width), np.stack([ground_color, 0.75 * ground_color]))
    instances = np.zeros((height, width), np.uint8)
    classes, areas = [BACKGROUND], [0.0]

    for _ in range(int(rng.integers(domain.objects[0], domain.objects[1] + 1))):
        index = _class_index(rng, domain)
        for _ in range(12):
            placed = _placed_outline(rng, SCENE_CLASSES[index], domain, height, width)
            size_px = area(placed.loops[0]) - sum(area(hole) for hole in placed.loops[1:])
            line = max(1.5, 0.1 * placed.radius) if rng.random() < domain.outlined else 0.0
            covered, contour = _rasterize(placed.loops, height, width, line)
            painted = np.where(covered >= 0.5, len(classes), instances)
            visible = np.bincount(painted.ravel(), minlength=len(classes) + 1)[1:]
            if np.all(visible >= min_visible * np.array([*areas[1:], size_px])):
                break
        else:
            continue  # no room left
        fill = _fill(rng, SCENE_CLASSES[index], placed, domain, height, width)
        colors = _tones(rng, domain)
        image += covered[..., None] * (_paint(fill, colors) - image)
        image += contour[..., None] * (_color(rng, (0.0, 1.0), (0.0, 0.35)) - image)
        instances = painted.astype(np.uint8)
        classes.append(index)
        areas.append(size_px)

    label = np.asarray(classes, np.uint8)[instances]
    label[_void_border(instances)] = IGNORE_INDEX
    return _photograph(rng, image, domain), label


def _photograph(rng: np.random.Generator, image: np.ndarray, domain: Domain) -> np.ndarray:
    """Adds the blur and pixel noise of a camera; uint8 [H, W, 3]."""
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    if domain.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, domain.blur)))
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, domain.sensor_noise)
    return np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8)
