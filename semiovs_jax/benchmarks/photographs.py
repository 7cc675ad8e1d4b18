"""Synthetic photographs with labels. Loading them costs as much as loading real ones."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.datasets import dataset_info

SIZE = (375, 500)  # of most images of Pascal VOC: height, width
DATASET = "voc21"

_JPEG_QUALITY = 90
_ROUGHNESS = 1.3  # amplitudes fall with this power of the frequency: about 80 kB an image of this size
_COLOR_ROUGHNESS = 1.8  # colors vary more slowly than brightness
_OBJECTS = 5  # classes in a label, without background


def draw_photograph(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draws noise with the spectrum of photographs, and a label of a few irregular regions with unlabeled borders.

    Returns:
      uint8 [H, W, 3] and uint8 [H, W].
    """
    luma, color = _noise(rng, size, 1, _ROUGHNESS), _noise(rng, size, 3, _COLOR_ROUGHNESS)
    image = np.clip(120 + 55 * luma + 18 * color, 0, 255).astype(np.uint8)
    info = dataset_info(DATASET)
    fields = _noise(rng, size, _OBJECTS, 2.2)
    classes = rng.choice(np.arange(1, info.num_classes), _OBJECTS, replace=False)
    label = np.where(fields.max(-1) > 1.2, classes[fields.argmax(-1)], 0).astype(np.uint8)
    label[abs(fields.max(-1) - 1.2) < 0.05] = info.ignore_index
    return image, label


def write_photographs(root: Path, count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """Writes `count` photographs below `root`, each with a label, a pseudo-label and a confidence.

    Images are JPEGs. Labels are palette PNGs and confidences gray PNGs, as `semiovs_jax.label` writes them. `train.txt`
    lists all of them.
    """
    palette = dataset_info(DATASET).palette.ravel().tolist()
    for folder in ("images", "labels", "confidence"):
        (root / folder).mkdir(parents=True)
    lines = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        image, label = draw_photograph(rng, size)
        Image.fromarray(image).save(root / f"images/{index:06d}.jpg", quality=_JPEG_QUALITY)
        plane = Image.fromarray(label)
        plane.putpalette(palette)
        plane.save(root / f"labels/{index:06d}.png")
        certain = np.clip(230 + 40 * _noise(rng, size, 1, 2.0)[..., 0], 0, 255).astype(np.uint8)
        Image.fromarray(certain).save(root / f"confidence/{index:06d}.png")
        lines.append(f"images/{index:06d}.jpg labels/{index:06d}.png\n")
    (root / "train.txt").write_text("".join(lines), encoding="utf-8")


def _noise(rng: np.random.Generator, size: tuple[int, int], channels: int, roughness: float) -> np.ndarray:
    """Noise of zero mean and unit variance whose amplitudes fall with a power of the frequency: float [H, W, C]."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((*size, channels)), axes=(0, 1))
    noise = np.fft.irfft2(spectrum * frequency[..., None] ** -roughness, s=size, axes=(0, 1))
    return (noise - noise.mean((0, 1))) / noise.std((0, 1))
