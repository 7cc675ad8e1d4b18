"""Finds images that duplicate an evaluation image, byte for byte or re-encoded.

Such images in the training data make the evaluation too good. Two hashes find them:

- sha256 of the file: the same bytes ("exact");
- the 64-bit perceptual hash of `imagehash.phash`: the signs of the lowest frequencies of a 32x32 gray copy ("near").
  The number of bits that differ grows with the visible difference. It is 0 for equal pixels in another file, so
  decoded pixels need no hash of their own.

`DISTANCE` was chosen on the benchmark "shapes": 100 validation images of 189x152 pixels, copies of each, and all pairs
of 900 images. Found, by the number of bits that may differ:

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

Mirrored, rotated and strongly cropped copies are not found. `imagehash` is in the extra `beam`.
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
from data_pipelines.images.orientation import orientation_of, turned_upright
from data_pipelines.sources.records import EncodedImage, Source

DISTANCE = 10
_DRAFT = (64, 64)  # JPEGs are decoded smaller, but large enough for 32x32 pixels: three times faster


class Duplicate(NamedTuple):
    """The evaluation image that an image duplicates.

    Attributes:
        evaluation: Id of the evaluation image.
        kind: "exact" or "near".
        distance: Number of bits in which the perceptual hashes differ, 0 to 64.
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
        distance: Largest distance of a duplicate, bits.
    """

    ids: tuple[str, ...]
    digests: tuple[bytes, ...]
    hashes: np.ndarray
    distance: int = DISTANCE

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of the images and their ids, in order."""
        names = "\n".join(self.ids).encode(errors="surrogateescape")
        return hashlib.sha256(b"".join(self.digests) + names).hexdigest()

    def duplicate(self, image: EncodedImage) -> Duplicate | None:
        """Finds the evaluation image that `image` duplicates: the nearest, of equals the first; None if there is none.

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
    """The perceptual hash of an encoded image, upright.

    Raises:
        InputError: `imagehash` is not installed.
        UnreadableError: The image is damaged.
    """
    try:
        import imagehash  # in the extra `beam`
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
        distance: Number of bits in which the perceptual hash of a duplicate may differ, 0 to 64.

    Raises:
        InputError: `distance` is out of range, or an image cannot be read, so that its copies would not be found.
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
        # PIL raises several types. Where it fails, the decoder of training decides, below.
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as jpeg:
            orientation = orientation_of(jpeg)
            jpeg.draft("L", _DRAFT)
            return Image.fromarray(turned_upright(np.asarray(jpeg.convert("L")), orientation))
    return Image.fromarray(decode_image(image)).convert("L")
