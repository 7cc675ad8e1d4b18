"""Compares cached OVS labels with the images that they are joined to by id, and checks their files."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import first_few
from data_pipelines.images.checksums import ImageChecksum, read_ends
from data_pipelines.images.decode import image_size
from data_pipelines.labels.cache import RecordedLabels
from data_pipelines.labels.manifest import LABEL_AGAIN, read_manifest
from data_pipelines.labels.parallel import map_in_chunks
from data_pipelines.labels.provenance import Provenance, images_sha256
from data_pipelines.sources.records import Record, Source, UnreadableError


class Verified(NamedTuple):
    """The state of the labels of an OOD set. Labels that are changed or damaged must be made again.

    Attributes:
        faults: Messages about what labeling does not repair: labels of another image set, or of another tool.
        changed: Ids of the images that are not those that were labeled.
        damaged: Why the label or the confidence of an image cannot be used, by id.
        adopted: Checksums by id of images whose labels do not record them: an older version made the labels.
        checked: Number of labels that were checked.
        images_sha256: Digest of their images, see `images_sha256`; "" if a label is unusable or an image is not known.
        stamp: The stamp of the source, see `Source.stamp`; "" if its images are files.
    """

    faults: tuple[str, ...]
    changed: tuple[str, ...]
    damaged: Mapping[str, str]
    adopted: Mapping[str, ImageChecksum]
    checked: int
    images_sha256: str
    stamp: str

    @property
    def unusable(self) -> frozenset[str]:
        """Ids of the labels that must be made again."""
        return frozenset((*self.changed, *self.damaged))

    def messages(self) -> list[str]:
        """What labeling repairs, a message for each kind."""
        found = []
        if self.changed and not self.faults:
            names = first_few(self.changed, 3)
            found.append(
                f"{len(self.changed)} OOD image(s) are not those that were labeled ({names}): main and label make "
                "their labels again"
            )
        if self.damaged:
            found.append(
                f"{len(self.damaged)} cached label(s) are damaged: {first_few(list(self.damaged.values()), 3)}"
            )
        return found


def verify_labels(labels: RecordedLabels, source: Source, *, num_threads: int) -> Verified:
    """Checks the labels of all images of an OOD set.

    Reads the label files, if the labels are files, and both ends of each image. Images in shards are read only if their
    stamp is not that of the labels' manifest.

    Args:
        labels: The labels.
        source: The OOD images.
        num_threads: Threads that read files.

    Raises:
        InputError: A file that describes the labels cannot be read.
    """
    manifest = read_manifest(labels.folder)
    stamp = source.stamp if source.prepared else ""
    if manifest is None:  # no labels yet, or those of another tool
        return Verified((), (), {}, {}, 0, "", stamp)
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        images = _Images(source, pool)
        labeled = [id_ for id_ in images.positions if labels.is_labeled(id_)]
        found = dict(zip(labeled, labels.provenances(labeled, pool), strict=True))
        if not stamp or stamp != manifest.get("images_stamp"):
            images.read(labeled)
        damaged = {id_: str(label) for id_, label in found.items() if isinstance(label, UnreadableError)}
        bare = [id_ for id_, label in found.items() if label is None]
        foreign = bare if "images_sha256" in manifest else []  # all labels recorded their images
        images.read(bare)
        fits = map_in_chunks(pool, lambda id_: _fits(images.record(id_), labels), bare)
        unfit = {id_ for id_, fit in zip(bare, fits, strict=True) if not fit}
    changed = (*_changed(found, images.known), *unfit)
    adopted = {id_: images.known[id_] for id_ in bare if id_ in images.known and id_ not in unfit}
    sound = adopted | {id_: label.image for id_, label in found.items() if isinstance(label, Provenance)}
    digest = images_sha256(sound.items()) if not changed and len(sound) == len(labeled) else ""
    faults = _faults(labels.folder, changed, foreign, len(labeled))
    return Verified(faults, changed, damaged, adopted, len(labeled), digest, stamp)


def _faults(folder: Path, changed: Sequence[str], foreign: Sequence[str], count: int) -> tuple[str, ...]:
    faults = []
    if 2 * len(changed) > count:  # to label them again would destroy the labels of another set
        faults.append(
            f"{folder}: holds labels of other images: {len(changed)} of {count} labeled images differ from those that "
            f"were labeled ({first_few(changed, 3)}); {LABEL_AGAIN}"
        )
    if foreign:
        faults.append(
            f"{folder}: {len(foreign)} label(s) are not made by semiovs_jax.label ({first_few(foreign, 3)}); remove "
            "the files to label these images again, or keep labels of another tool in a folder of their own, with "
            "config.ovs.labels='external'"
        )
    return tuple(faults)


class _Images:
    """Checksums of the images of a source by id, read when they are needed.

    Attributes:
        positions: The first position of each id in the source.
        known: The checksums that are read, without images that cannot be read.
    """

    def __init__(self, source: Source, pool: Executor):
        self._source = source
        self._pool = pool
        self.positions: dict[str, int] = {}
        for position, id_ in enumerate(source.ids()):
            self.positions.setdefault(id_, position)
        self.known: dict[str, ImageChecksum] = {}

    def record(self, id_: str) -> Record:
        return self._source[self.positions[id_]]

    def read(self, ids: Sequence[str]) -> None:
        """Reads the checksums that are not known yet."""
        ids = [id_ for id_ in ids if id_ not in self.known]
        found = zip(ids, map_in_chunks(self._pool, self._read, ids), strict=True)
        self.known |= {id_: checksum for id_, checksum in found if checksum is not None}

    def _read(self, id_: str) -> ImageChecksum | None:
        try:
            with self.record(id_).image.open() as stream:
                return read_ends(stream).checksum
        except (UnreadableError, OSError):
            return None


def _changed(found: Mapping[str, Provenance | UnreadableError | None], known: Mapping[str, ImageChecksum]) -> list[str]:
    """Ids of the images that are known and are not those of their labels."""
    labels = ((id_, label) for id_, label in found.items() if isinstance(label, Provenance))
    return [id_ for id_, label in labels if known.get(id_, label.image) != label.image]


def _fits(record: Record, labels: RecordedLabels) -> bool:
    """Whether a label has the size of its image. A file that cannot be read is not compared."""
    label = labels.planes(record.id)[0]
    try:
        return label is None or image_size(label) == image_size(record.image)
    except UnreadableError:
        return True
