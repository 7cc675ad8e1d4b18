"""Leakage: images that are an evaluation image again, as the same file or as a copy that was encoded or scaled anew.

A scraped image that is an evaluation image makes evaluation too good. Two hashes find it:

- sha256 of the file: the very same bytes ("exact");
- the 64-bit perceptual hash of `imagehash.phash`, the signs of the lowest frequencies of a 32x32 gray copy: bits that
  differ grow with what a person would see ("near"). A copy of the same pixels in another file has distance 0, so
  decoded pixels need no hash of their own.

`DISTANCE` was chosen on the benchmark "shapes": 100 validation images of 189x152 pixels, copies of each, and all pairs
of 900 images. Found by the bits that may differ:

    copy                                          4     6     8    10    12
    JPEG, quality 30                             95    99   100   100   100 %
    JPEG, quality 50 to 90; WebP, quality 75     98    99   100   100   100 %
    scaled by 0.5 to 2                           99   100   100   100   100 %
    scaled by 0.5, quality 30                    83    94    98    99   100 %
    brighter, color cast, gray                   98    99   100   100   100 %
    gamma 0.8, contrast 1.3                      90    93    96    97    97 %
    2 % cut off at each side                     65    86    99    99   100 %
    4 % cut off at each side                     15    39    56    80    89 %
    10 % cut off at each side                     0     0     2     5    11 %
    other images, of 404,550 pairs                0     0     0     3    16

Mirrored, rotated and strongly cropped copies are not found. Needs the extra `beam` for `imagehash`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_image
from data_pipelines.sources.records import EncodedImage, Source

DISTANCE = 10
_DRAFT = (64, 64)  # a JPEG is decoded no larger than needed for the hash's 32x32 pixels: three times as fast


class Duplicate(NamedTuple):
    """What an image was found to be.

    Attributes:
        evaluation: Id of the evaluation image.
        kind: "exact" or "near".
        distance: Bits in which the perceptual hashes differ, 0 to 64.
    """

    evaluation: str
    kind: str
    distance: int


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationImages:
    """Hashes of all evaluation images.

    Attributes:
        ids: Id of each image.
        digests: sha256 of each image's bytes.
        hashes: uint64 [images], perceptual hash of each image.
        distance: Largest distance of a duplicate.
    """

    ids: tuple[str, ...]
    digests: tuple[bytes, ...]
    hashes: np.ndarray
    distance: int = DISTANCE

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digits that are the same for the same images in the same order."""
        names = "\n".join(self.ids).encode(errors="surrogateescape")
        return hashlib.sha256(b"".join(self.digests) + names).hexdigest()

    def duplicate(self, image: EncodedImage) -> Duplicate | None:
        """The evaluation image that an image is a copy of, the nearest and then the first; None if there is none.

        Raises:
            UnreadableError: The image is damaged.
        """
        position = self._positions.get(hashlib.sha256(image.read()).digest())
        if position is not None:
            return Duplicate(self.ids[position], "exact", 0)
        distances = np.bitwise_count(self.hashes ^ perceptual_hash(image))
        nearest = int(distances.argmin())
        if distances[nearest] > self.distance:
            return None
        return Duplicate(self.ids[nearest], "near", int(distances[nearest]))

    @functools.cached_property
    def _positions(self) -> dict[bytes, int]:
        return {digest: position for position, digest in reversed(list(enumerate(self.digests)))}


def perceptual_hash(image: EncodedImage) -> np.uint64:
    """The perceptual hash of an encoded image, its pixels as they are stored (EXIF orientation is not applied).

    Raises:
        InputError: `imagehash` is not installed.
        UnreadableError: The image is damaged.
    """
    try:
        import imagehash  # of an extra
    except ImportError as error:
        raise InputError(
            "a search for duplicates of evaluation images needs imagehash; pip install 'semiovs-jax[beam]'"
        ) from error
    bits = imagehash.phash(_gray(image)).hash
    return np.packbits(bits).view(">u8")[0].astype(np.uint64)


def hash_evaluation_images(source: Source, distance: int = DISTANCE) -> EvaluationImages:
    """Reads and hashes all images of a source.

    Args:
        source: The evaluation images.
        distance: Bits in which the perceptual hash of a duplicate may differ, 0 to 64.

    Raises:
        InputError: `distance` is out of range, or an image cannot be read: its copies would not be found.
    """
    if not 0 <= distance <= 64:
        raise InputError(f"--leakage_distance={distance}: a hash has 64 bits; allow 0 to 64 of them to differ")
    images = [source[index].image for index in range(len(source))]
    digests = tuple(hashlib.sha256(image.read()).digest() for image in images)
    hashes = np.array([perceptual_hash(image) for image in images], dtype=np.uint64)
    return EvaluationImages(tuple(source.ids()), digests, hashes, distance)


def _gray(image: EncodedImage) -> Image.Image:
    data = image.read()
    if data.startswith(b"\xff\xd8"):
        # Whatever PIL refuses, by several types: the decoder of training judges it below.
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as jpeg:
            jpeg.draft("L", _DRAFT)
            return jpeg.convert("L")
    return Image.fromarray(decode_image(image)).convert("L")
