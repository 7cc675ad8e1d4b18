"""What is allowed in a run's data but worth a look."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.checking.survey import SplitReport
from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import first_few
from data_pipelines.images.decode import ImageFacts
from data_pipelines.sources.folders import FolderSource
from data_pipelines.sources.mixture import Mixture, NamedSource
from data_pipelines.sources.records import Source

_TINY = 8  # an image whose long side is this much smaller than the crop is worth a warning


def overlap_warnings(ids: Mapping[str, Sequence[str]]) -> list[str]:
    """Says which training splits share images with validation, by the ids of the splits that are there."""
    validation = set(ids.get("val", ()))
    return [
        f"{len(shared)} image(s) of the {split} split are in the val split too ({', '.join(shared[:3])}): "
        "validation results will be too good"
        for split in ("labeled", "unlabeled")
        if (shared := sorted(validation & set(ids.get(split, ()))))
    ]


def count_warnings(ids: Mapping[str, Sequence[str]], info: DatasetInfo) -> list[str]:
    """Says which splits are not of the published size, by the ids of the splits that are there."""
    found = {"val": set(ids["val"])} if "val" in ids else {}
    if "labeled" in ids and "unlabeled" in ids:
        found["train"] = {*ids["labeled"], *ids["unlabeled"]}
    return [
        f"{split}: {len(images)} images, {info.counts[split]} in the published {info.name} split; "
        "results do not compare with published ones"
        for split, images in found.items()
        if split in info.counts and len(images) != info.counts[split]
    ]


def label_warnings(split: str, found: SplitReport, info: DatasetInfo) -> list[str]:
    """Names the classes that no label of the split has."""
    absent = [f"{i} {name}" for i, name in enumerate(info.classes) if i not in found.values]
    if not (found.values and absent):
        return []
    effect = {
        "labeled": "a student learns it from no true label; add labeled images that show it",
        "val": "it counts as IoU 0 in the mean over all classes; add validation images that show it",
    }
    names = first_few(absent, 20)
    return [f"{split}: {len(absent)} of {info.num_classes} classes in no label ({names}): {effect[split]}"]


def left_out_warnings(sources: Mapping[str, Source]) -> list[str]:
    """Counts the files below scanned folders that are no images, by type."""
    return [
        f"{split}: {sum(kinds.values())} file(s) are no JPEG, PNG or WebP and are left out ("
        + first_few([f"{count} {suffix}" for suffix, count in kinds.most_common()])
        + "); convert them if they are images"
        for split, source in sources.items()
        if (kinds := _left_out(source))
    ]


def _left_out(source: Source) -> Counter[str]:
    parts = source.sources if isinstance(source, Mixture) else (source,)
    counts: Counter[str] = Counter()
    for part in parts:
        found = part.source if isinstance(part, NamedSource) else part
        if isinstance(found, FolderSource):
            counts.update({suffix or "without suffix": count for suffix, count in found.left_out})
    return counts


def size_warnings(split: str, images: Sequence[ImageFacts], crop_size: int) -> list[str]:
    """Counts training images whose long side is less than an eighth of a crop's."""
    tiny = [image for image in images if _TINY * max(image.size) < crop_size]
    if split == "val" or not tiny:
        return []
    example = f"{tiny[0].name} is {tiny[0].size[1]}x{tiny[0].size[0]}"
    return [
        f"{split}: {len(tiny)} image(s) have a long side below an eighth of config.data.crop_size={crop_size} "
        f"({example}): they are mostly padding; remove them, or lower the crop size"
    ]


def repetition_warnings(split: str, ids: Sequence[str], data: Any) -> list[str]:
    """Names images that are listed more than once."""
    repeated = sorted(id_ for id_, count in Counter(ids).items() if count > 1)
    if not repeated:
        return []
    field = f"{split}_split"
    return [
        f"{split}: {len(repeated)} image(s) are listed more than once ({first_few(repeated, 3)}) and count as often; "
        f"keep one line each in config.data.{field}={data[field]}"
    ]


def skipped_warning(skipped: Sequence[str], allowed: int) -> str:
    """Names training files that cannot be read and will be passed over."""
    return (
        f"{len(skipped)} training file(s) cannot be read and will be passed over, as config.data.max_bad_records="
        f"{allowed} allows: {first_few(skipped)}"
    )


def duplicate_warning(split: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Names images of a training split with the bytes of a validation image, as pairs of names."""
    few = first_few([f"{one} is {other}" for one, other in pairs], 3)
    return (
        f"{split}: {len(pairs)} image(s) hold the bytes of images of the val split ({few}): "
        f"validation results will be too good; remove them from the {split} images"
    )
