import colorsys
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.shapes.benchmark import ShapesSpec, StartSpec, scene_rng, write_shapes, write_start
from data_pipelines.shapes.drawing import (
    IGNORE_INDEX,
    OOD_DOMAIN,
    SCENE_CLASSES,
    TARGET_DOMAIN,
    Domain,
    draw_scene,
)
from data_pipelines.shapes.motifs import MOTIFS, START_MOTIFS
from data_pipelines.shapes.outlines import DISTRACTORS, TARGETS, UNIT_OUTLINES, area

SPEC = ShapesSpec(labeled=4, unlabeled=6, val=3, ood=5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "shapes"
    write_shapes(path, SPEC, seed=3)
    return path


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_dataset_facts_name_the_classes_drawn() -> None:
    info = dataset_info("shapes")
    assert info.classes == SCENE_CLASSES[: len(info.classes)] == ("background", *TARGETS)
    assert info.ignore_index == IGNORE_INDEX
    default = ShapesSpec()
    assert info.counts == {"train": default.labeled + default.unlabeled, "val": default.val}
    assert len(DISTRACTORS) >= 10


def test_splits_list_existing_disjoint_pairs(root: Path) -> None:
    seen: set[str] = set()
    for name, count in (("labeled", SPEC.labeled), ("unlabeled", SPEC.unlabeled), ("val", SPEC.val)):
        rows = [line.split(" ") for line in (root / "splits" / f"{name}.txt").read_text().splitlines()]
        assert len(rows) == count
        for image, label in rows:
            assert (root / image).is_file()
            assert (root / label).is_file()
            assert Path(image).stem == Path(label).stem
            assert image not in seen
            seen.add(image)
    assert len(list((root / "JPEGImages").iterdir())) == len(seen)
    assert len(list((root / "ood" / "JPEGImages").iterdir())) == SPEC.ood


def test_files_are_voc_like(root: Path) -> None:
    palette = dataset_info("shapes").palette.ravel().tolist()
    sizes = set()
    for folder, labels, last in (
        ("JPEGImages", "SegmentationClass", len(TARGETS)),
        ("ood/JPEGImages", "ood/SegmentationClassFull", len(SCENE_CLASSES) - 1),
    ):
        for path in sorted((root / folder).iterdir()):
            image, label = Image.open(path), Image.open(root / labels / f"{path.stem}.png")
            assert (image.format, image.mode, label.mode) == ("JPEG", "RGB", "P")
            assert image.size == label.size
            assert all(100 <= side <= 200 for side in image.size)
            assert label.getpalette() == palette
            sizes.add(image.size)
            values = set(np.unique(np.asarray(label)))
            assert {0, IGNORE_INDEX} < values
            assert max(values - {IGNORE_INDEX}) <= last
    assert len(sizes) > 10


def test_same_seed_same_bytes_and_other_seed_other_images(root: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "same", SPEC, seed=3)
    write_shapes(tmp_path / "other", SPEC, seed=4)
    expected, same, other = digests(root), digests(tmp_path / "same"), digests(tmp_path / "other")
    assert same == expected
    images = [name for name in expected if name.endswith(".jpg")]
    assert not {expected[name] for name in images} & {other[name] for name in images}


def test_larger_spec_keeps_the_images(root: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "larger", ShapesSpec(labeled=5, unlabeled=8, val=4, ood=6), seed=3)
    larger = digests(tmp_path / "larger")
    assert all(larger[name] == digest for name, digest in digests(root).items() if name.endswith(".jpg"))


def test_written_root_is_kept_and_foreign_data_is_refused(root: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_shapes(root, SPEC, seed=3)["seed"] == 3
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(InputError, match=r"shapes: holds data that is not the shapes benchmark with seed 4"):
        write_shapes(root, SPEC, seed=4)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="name another root"):
        write_shapes(tmp_path, SPEC)
    with pytest.raises(InputError, match="name another root"):
        write_shapes(tmp_path / "note.txt", SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("data_pipelines.shapes.benchmark.draw_scene", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shapes(tmp_path / "shapes", SPEC)
    assert not list(tmp_path.iterdir())


def test_bad_sizes_and_seeds_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got labeled=0, ood=-1"):
        write_shapes(tmp_path / "shapes", ShapesSpec(labeled=0, ood=-1))
    with pytest.raises(InputError, match="got -1"):
        write_shapes(tmp_path / "shapes", SPEC, seed=-1)


def test_command_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "data_pipelines.shapes",
        "--labeled=1",
        "--unlabeled=1",
        "--val=1",
        "--ood=1",
    ]
    done = subprocess.run([*command, f"--root={tmp_path / 'a'}"], capture_output=True, text=True, check=True)
    assert "1 labeled, 1 unlabeled" in done.stdout
    (tmp_path / "b").write_text("mine")
    refused = subprocess.run([*command, f"--root={tmp_path / 'b'}"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    done = subprocess.run(
        [*command[:3], "--start", "--labeled=1", "--val=1", f"--root={tmp_path / 'c'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 labeled and 1 validation images" in done.stdout
    refused = subprocess.run(
        [*command, "--start", f"--root={tmp_path / 'd'}"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "--start has the sizes labeled, val, jpeg_quality, not ood, unlabeled" in refused.stderr


def test_outlines_have_one_size() -> None:
    for name, loops in UNIT_OUTLINES.items():
        radius = np.linalg.norm(loops[0], axis=1).max()
        assert np.isclose((radius + np.sqrt(area(loops[0]) / np.pi)) / 2, 1), name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), ood=st.booleans())
def test_scene_is_labeled_where_it_is_painted(seed: int, ood: bool) -> None:
    domain = OOD_DOMAIN if ood else TARGET_DOMAIN
    image, label = draw_scene(scene_rng(seed, "val", 0), domain, (120, 104))
    assert image.shape == (120, 104, 3)
    assert label.shape == (120, 104)
    present = set(np.unique(label)) - {0, IGNORE_INDEX}
    assert 1 <= len(present) <= domain.objects[1]
    assert ood or max(present) <= len(TARGETS)
    # The border separates: no two neighboring pixels are of two classes.
    for first, second in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
        meets = (first != second) & (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
        assert not meets.any()


def test_classes_have_motifs_of_their_own() -> None:
    assert (tuple(MOTIFS), tuple(START_MOTIFS)) == (TARGETS, DISTRACTORS)
    u, v = np.mgrid[-1:1:64j, -1:1:64j]
    planes = [motif(u, v, 2.0) for motif in (*MOTIFS.values(), *START_MOTIFS.values())]
    for index, plane in enumerate(planes):
        assert plane.shape == u.shape
        assert 0.05 < np.mean(plane) < 0.95
        assert all(np.mean(plane == other) < 0.97 for other in planes[:index])


@pytest.mark.parametrize("domain", [TARGET_DOMAIN, OOD_DOMAIN], ids=["target", "ood"])
def test_colors_do_not_tell_the_class(domain: Domain) -> None:
    """Objects of a class have hues all around the circle."""
    hues: dict[int, list[float]] = {value: [] for value in range(1, 1 + len(TARGETS))}
    for index in range(150):
        image, label = draw_scene(scene_rng(0, "train", index), domain, (100, 100))
        for value in set(np.unique(label)) & hues.keys():
            pixels = image[label == value]
            gray = np.ptp(pixels.astype(int), axis=1)
            red, green, blue = np.median(pixels[gray >= np.quantile(gray, 0.6)], axis=0) / 255
            hues[value].append(colorsys.rgb_to_hsv(red, green, blue)[0])
    for value, found in hues.items():
        thirds, _ = np.histogram(found, bins=3, range=(0, 1))
        assert (thirds >= 3).all(), f"{SCENE_CLASSES[value]}: {thirds}"


def test_labeled_images_show_every_class(tmp_path: Path) -> None:
    def labeled(count: int) -> list[str]:
        root = tmp_path / str(count)
        write_shapes(root, ShapesSpec(labeled=count, unlabeled=40 - count, val=1, ood=1))
        return (root / "splits" / "labeled.txt").read_text().splitlines()

    few, more = labeled(8), labeled(12)
    assert set(few) < set(more)
    shown = [set(np.unique(np.asarray(Image.open(tmp_path / "8" / row.split()[1])))) for row in few]
    assert set.union(*shown) >= set(range(1, 1 + len(TARGETS)))


def test_the_start_has_other_classes(tmp_path: Path) -> None:
    spec = StartSpec(labeled=20, val=2)
    manifest = write_start(tmp_path / "start", spec)
    assert write_start(tmp_path / "start", spec) == manifest
    info = dataset_info("shapes_start")
    assert info.classes == ("background", *DISTRACTORS)
    assert info.counts == {"train": StartSpec().labeled, "val": StartSpec().val}
    planes = [np.asarray(Image.open(path)) for path in (tmp_path / "start" / "SegmentationClass").iterdir()]
    values = set(np.concatenate([plane.ravel() for plane in planes]).tolist())
    assert {0, 1, len(DISTRACTORS), IGNORE_INDEX} <= values <= {*range(1 + len(DISTRACTORS)), IGNORE_INDEX}
    with pytest.raises(InputError, match="holds data that is not the shapes benchmark"):
        write_shapes(tmp_path / "start", SPEC)
