"""The four streams of SemiOVS as a PyTorch input pipeline, for comparison. Needs the extra `bench`.

PIL and torchvision make all views on the host, as in the official trainer (`semiovs/dataset/semi.py` and
`semiovs/semiovs_unimatch.py` of wooseok-shin/SemiOVS): one weak view for each stream, and two strong views and two
CutMix boxes for each unlabeled stream. The loader reads a label file for every image, even if it is not used. CutMix
itself runs on the device in both projects.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IGNORED = 255
_ENDLESS = 10**6  # batches


class Stream(Dataset):
    """One stream: the images and labels that `train.txt` lists below `root`.

    Args:
        root: Folder of `write_photographs`.
        kind: "labeled"; "unlabeled", with labels that are read and not used; or "ood", with pseudo-labels.
        crop_size: Side of the square crop.
    """

    def __init__(self, root: Path, kind: str, crop_size: int):
        self._pairs = [
            tuple(root / name for name in line.split())
            for line in (root / "train.txt").read_text(encoding="utf-8").splitlines()
        ]
        self._kind = kind
        self._crop_size = crop_size
        self._jitter = transforms.ColorJitter(0.5, 0.5, 0.5, 0.25)
        self._gray = transforms.RandomGrayscale(0.2)
        self._tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)])

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Any:
        image_path, label_path = self._pairs[index]
        indices = Image.fromarray(np.asarray(Image.open(label_path)))  # without the palette: PIL would paste its colors
        image, label = self._cropped(Image.open(image_path).convert("RGB"), indices)
        plane = torch.from_numpy(np.array(label)).long()
        if self._kind == "labeled":
            return self._tensor(image), plane
        strong1, strong2 = self._strong(image), self._strong(image)
        ignored = torch.where(plane == _IGNORED, _IGNORED, 0)
        boxes = self._box(), self._box()
        weak = self._tensor(image)
        if self._kind == "ood":
            plane[plane == _IGNORED] = 0
            return weak, plane, strong1, strong2, ignored, *boxes
        return weak, strong1, strong2, ignored, *boxes

    def _cropped(self, image: Image.Image, label: Image.Image) -> tuple[Image.Image, Image.Image]:
        """Random scale of the long side, padding to the right and below, random crop, random flip."""
        longest, side = max(image.size), self._crop_size
        ratio = random.randint(longest // 2, 2 * longest) / longest
        size = int(image.width * ratio + 0.5), int(image.height * ratio + 0.5)
        image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)
        x, y = (random.randint(0, max(length - side, 0)) for length in size)
        padded = Image.new("L", (side, side), _IGNORED)
        padded.paste(label.crop((x, y, min(x + side, size[0]), min(y + side, size[1]))))
        image, label = image.crop((x, y, x + side, y + side)), padded  # outside an image PIL crops zeros
        if random.random() < 0.5:
            mirror = Image.Transpose.FLIP_LEFT_RIGHT
            image, label = image.transpose(mirror), label.transpose(mirror)
        return image, label

    def _strong(self, image: Image.Image) -> torch.Tensor:
        if random.random() < 0.8:
            image = self._jitter(image)
        image = self._gray(image)
        if random.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        return self._tensor(image)

    def _box(self) -> torch.Tensor:
        """A mask with a random CutMix box, or with none. Boxes are redrawn until one fits."""
        side = self._crop_size
        box = torch.zeros(side, side)
        if random.random() < 0.5:
            return box
        area = random.uniform(0.02, 0.4) * side**2
        while True:
            ratio = random.uniform(0.3, 1 / 0.3)
            width, height = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
            x, y = random.randrange(side), random.randrange(side)
            if x + width <= side and y + height <= side:
                box[y : y + height, x : x + width] = 1
                return box


def torch_batches(root: Path, batch_size: int, crop_size: int, workers: int, seed: int) -> Iterator[Any]:
    """Endless batches of all four streams: labeled, unlabeled, their mix partners, and OOD.

    Args:
        root: Folder of `write_photographs`.
        batch_size: Number of images of each stream.
        crop_size: Side of the square crop.
        workers: Worker processes of each stream's loader; the official trainer uses 1.
        seed: Seed of the sampler of each stream.
    """
    loaders = []
    for number, kind in enumerate(("labeled", "unlabeled", "unlabeled", "ood")):
        stream = Stream(root, kind, crop_size)
        generator = torch.Generator().manual_seed(seed + number)
        sampler = RandomSampler(
            stream, replacement=True, num_samples=_ENDLESS * batch_size, generator=generator
        )  # one endless pass: workers start once
        loaders.append(DataLoader(stream, batch_size, sampler=sampler, num_workers=workers, generator=generator))
    return zip(*loaders, strict=True)
