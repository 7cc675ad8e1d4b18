"""Labels of another tool are checked, and written as external labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.labels.external import external_faults
from data_pipelines.labels.imports import Imported, import_labels
from data_pipelines.sources.folders import open_images

INFO = dataset_info("shapes")
SIZE = (20, 30)  # height, width
IDS = ("0", "1", "sub/2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs in `photos`, labels with confidences in `tool`."""
    rng = np.random.default_rng(0)
    for number, id_ in enumerate(IDS):
        save(tmp_path / "photos" / f"{id_}.jpg", rng.integers(0, 256, (*SIZE, 3)))
        save(tmp_path / "tool" / "labels" / f"{id_}.png", np.full(SIZE, number))
        save(tmp_path / "tool" / "confidence" / f"{id_}.png", np.full(SIZE, 200 + number))
    return tmp_path


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def run(folder: Path, out: str = "out") -> Imported:
    return import_labels(photos(folder), folder / "tool", folder / out, INFO, num_threads=2)


def photos(folder: Path):
    return open_images(folder / "photos", "", ("root", "split"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_and_confidences_are_taken_over_as_they_are(folder: Path):
    before = content(folder)
    found = run(folder)
    assert (found.images, found.written) == (3, 3)
    assert found.pixels.tolist() == [600, 600, 600, *[0] * 7]
    for number, id_ in enumerate(IDS):
        label = Image.open(folder / "out" / "labels" / f"{id_}.png")
        assert np.all(np.asarray(label) == number)
        assert label.getpalette()[3 * number : 3 * number + 3] == INFO.palette[number].tolist()
        assert np.all(np.asarray(Image.open(folder / "out" / "confidence" / f"{id_}.png")) == 200 + number)
    assert external_faults(found.labels, photos(folder), INFO, 2) == []
    assert before.items() <= content(folder).items()


@pytest.mark.parametrize("beside", [False, True])
def test_labels_need_no_confidence_and_may_be_directly_in_the_folder(folder: Path, beside: bool):
    for path in (folder / "tool" / "confidence").rglob("*.png"):
        path.unlink()
    if beside:
        (folder / "tool" / "labels").rename(folder / "moved")
        for path in (folder / "moved").iterdir():
            path.rename(folder / "tool" / path.name)
    run(folder)
    assert not (folder / "out" / "confidence").exists()
    assert len(list((folder / "out" / "labels").rglob("*.png"))) == 3


def test_the_same_import_again_writes_what_is_missing(folder: Path):
    run(folder)
    before = content(folder / "out")
    (folder / "out" / "labels" / "1.png").unlink()
    again = run(folder)
    assert (again.images, again.written, again.pixels.sum()) == (3, 1, 1800)
    assert content(folder / "out") == before


def test_all_faults_are_told_at_once_and_nothing_is_written(folder: Path):
    tool = folder / "tool" / "labels"
    save(tool / "0.png", np.full(SIZE, 77))
    save(tool / "1.png", np.zeros((3, 4)))
    (tool / "sub" / "2.png").unlink()
    save(tool / "3.png", np.zeros(SIZE))
    with pytest.raises(InputError) as error:
        run(folder)
    faults = dict(zip(("range", "size", "missing", "extra"), map(str, error.value.args), strict=True))
    assert "77" in faults["range"]
    assert "4x3 (width x height)" in faults["size"]
    assert "sub/2.png" in faults["missing"]
    assert "1 label(s) belong to no OOD image (3.png)" in faults["extra"]
    assert not (folder / "out").exists()


def test_other_labels_in_the_folder_are_not_overwritten(folder: Path):
    run(folder)
    before = content(folder / "out")
    save(folder / "tool" / "labels" / "1.png", np.full(SIZE, 5))
    with pytest.raises(
        InputError, match=r"--out=.*: 1 label\(s\) or confidences there are not those of --import \(1\)"
    ):
        run(folder)
    (folder / "photos" / "1.jpg").unlink()
    (folder / "tool" / "labels" / "1.png").unlink()
    with pytest.raises(InputError, match=r"--out=.*: has 1 label\(s\) of other images \(1\.png\)"):
        run(folder)
    assert content(folder / "out") == before


def test_labels_of_this_project_and_the_folder_itself_are_no_place_for_an_import(folder: Path):
    with pytest.raises(InputError, match=r"is the folder of --import; .* --config\.ovs\.labels=external"):
        run(folder, "tool")
    save(folder / "out" / "labels" / "0.png", np.zeros(SIZE))
    (folder / "out" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"has labels that semiovs_jax\.label made"):
        run(folder)
    with pytest.raises(InputError, match=r"--import=nowhere: no such folder"):
        import_labels(photos(folder), Path("nowhere"), folder / "new", INFO, num_threads=1)
