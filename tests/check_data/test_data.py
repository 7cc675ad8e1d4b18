"""What is wrong with a user's own images and lists is named, with what to do about it, whatever else is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import custom
from data_pipelines.errors import InputError
from semiovs_jax.config_checks import inspect
from tests import custom_tree
from tests.check_data.report import WEIGHTS, check, faults_of
from tests.custom_tree import label, write_custom, write_label, write_text, write_vocabulary
from tests.data_pipelines.tree import jpeg_of_size


def test_a_clean_tree_is_usable_and_counted(root, capsys, tmp_path):
    status, text = check(capsys, json="report.json")
    assert status == 0
    assert text.splitlines()[-1] == "usable"
    assert "faults" not in text
    assert "warnings" not in text
    rows = [line.split() for line in text.splitlines()]
    for split, count in (custom_tree.COUNTS | {"ood": custom_tree.OOD}).items():
        assert [split, str(count), "0", "60x40", "60x40", "60x40", str(count), "JPEG", "RGB"] in rows
    assert ["1", "3", "16.67", "%", "2", "16.67", "%", "blob"] in rows
    assert ["255", "3", "3.33", "%", "2", "3.33", "%", "(ignored)"] in rows
    assert "val labels: 2 PNG L" in text
    assert "ovs vocabulary custom: 3 classes, 4 concepts, 5 names, 80 template(s), 400 prompts" in text
    assert "cached OVS labels: 0 labeled, 0 bad, 5 missing" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["usable"]
    pixels = custom_tree.SIZE[0] * 10
    assert report["splits"]["labeled"]["values"]["2"]["pixels"] == 3 * pixels
    assert report["splits"]["val"]["values"]["0"] == {
        "images": 2,
        "pixels": 2 * 38 * custom_tree.SIZE[0],
        "example": "data/custom/indices/07.png",
    }


def no_class_list(root):
    (root / "classes.json").unlink()


def malformed_class_list(root):
    write_text(root / "classes.json", '{"name": "custom", "classes": ["floor", "blob", "bar"]')


def class_list_without_ignore_index(root):
    write_text(root / "classes.json", '{"name": "custom", "classes": ["floor", "blob", "bar"]}')


def no_root(root):
    root.rename(root.with_name("elsewhere"))
    write_custom(root.with_name("elsewhere"))


def no_split(root):
    (root / "splits/val.txt").unlink()


def empty_split(root):
    write_text(root / "splits/unlabeled.txt", "\n")


def malformed_lines(root):
    write_text(root / "splits/labeled.txt", "photos/00.jpg indices/00.png\nphotos/01.jpg\n../x.jpg indices/02.png\n")


def id_without_file(root):
    (root / "photos/04.jpg").unlink()


def no_label(root):
    (root / "indices/08.png").unlink()


def colored_label(root):
    Image.open(root / "indices/01.png").convert("RGB").save(root / "indices/01.png")


def lossy_label(root):
    Image.fromarray(np.zeros(custom_tree.SIZE, np.uint8)).save(root / "indices/00.jpg", "JPEG")
    lines = (root / "splits/labeled.txt").read_text()
    write_text(root / "splits/labeled.txt", lines.replace("indices/00.png", "indices/00.jpg"))


def turned_photograph(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "photos/00.jpg").save(root / "photos/00.jpg", exif=exif)


def backslashes(root):
    write_text(root / "splits/unlabeled.txt", "photos\\03.jpg\n")


def name_with_a_space(root):
    (root / "photos/03.jpg").rename(root / "photos/my photo.jpg")
    write_text(root / "splits/unlabeled.txt", "photos/my photo.jpg\n")


def huge_photograph(root):
    (root / "photos/05.jpg").write_bytes(jpeg_of_size(60_000, 60_000))


def label_with_alpha(root):
    Image.open(root / "indices/01.png").convert("LA").save(root / "indices/01.png")


def label_with_color_and_alpha(root):
    Image.open(root / "indices/01.png").convert("RGBA").save(root / "indices/01.png")


def label_of_16_bits(root):
    Image.fromarray(label().astype(np.uint16)).save(root / "indices/01.png")


def foreground_mask(root):
    write_label(root / "indices/07.png", np.where(label() == 1, 255, 0).astype(np.uint8))


def labels_from_one(root):
    for path in root.glob("indices/*.png"):
        write_label(path, np.where(label() == 255, 255, label() + 1).astype(np.uint8))


def one_stray_value(root):
    plane = label()
    plane[0, :7] = 9
    write_label(root / "indices/02.png", plane)


def label_of_another_size(root):
    write_label(root / "indices/00.png", label()[:-3])


def truncated_photograph(root):
    path = root / "ood/web/3.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def text_for_a_photograph(root):
    write_text(root / "photos/05.jpg", "<html>not found</html>")


def vocabulary_with_a_class_missing(root):
    write_vocabulary(root, {name: [name] for name in ("floor", "blob")})


def vocabulary_in_another_order(root):
    write_vocabulary(root, {name: [name] for name in ("floor", "bar", "blob")})


def no_vocabulary(root):
    (root / "vocabulary.json").unlink()


def no_ood_image(root):
    for path in root.glob("ood/web/*.jpg"):
        path.rename(path.with_suffix(".tiff"))


def labels_dir_among_images(root):
    return {"ovs.labels_dir": "data/custom/ood/labels"}


BROKEN = [
    (no_class_list, ["data/custom/classes.json", "is unknown", "give the path of a json file"]),
    (malformed_class_list, ["data/custom/classes.json", "not valid json", "fix the dataset file"]),
    (class_list_without_ignore_index, ["data/custom/classes.json", "'ignore_index' is missing"]),
    (no_root, ["config.data.root=data/custom", "no such folder", "create it, or set config.data.root"]),
    (no_split, ["config.data.val_split=splits/val.txt", "no such file", "relative to data/custom"]),
    (empty_split, ["unlabeled.txt", "is empty", "write one `IMAGE` a line"]),
    (malformed_lines, ["labeled.txt", "line 2: 'photos/01.jpg' has 1 column", "line 3: '../x.jpg'", "below the root"]),
    (
        id_without_file,
        ["unlabeled: 1 file", "photos/04.jpg", "No such file", "remove them, or raise", "max_bad_records"],
    ),
    (no_label, ["val: 1 file", "indices/08.png", "No such file", "take their lines out of config.data.val_split="]),
    (colored_label, ["labeled", "01.png", "mode RGB", "map its colors to the indices of custom"]),
    (lossy_label, ["labeled: ", "00.jpg", "label image is a JPEG", "as PNG from the tool that made it"]),
    (turned_photograph, ["labeled", "00.png", "60x40", "00.jpg is 40x60 when its EXIF", "label for the upright image"]),
    (backslashes, ["unlabeled.txt", "'photos\\\\03.jpg' has a backslash; write / between folders"]),
    (name_with_a_space, ["unlabeled.txt", "image 'photos/my' and the label 'photo.jpg'", "double quotes"]),
    (huge_photograph, ["unlabeled: 1 file", "05.jpg: is 60000x60000", "pixels that are read", "remove"]),
    (label_with_alpha, ["labeled", "01.png", "mode LA", "without an alpha channel"]),
    (label_with_color_and_alpha, ["labeled", "01.png", "mode RGBA", "map its colors to the indices"]),
    (label_of_16_bits, ["labeled", "01.png", "mode I;16", "with 8 bits"]),
    (foreground_mask, ["val", "07.png", "only the values 0 and 255", "write class indices 0..2"]),
    (labels_from_one, ["labeled", "00.png", "label 3 is out of range", "2 more", "count from 1: subtract 1"]),
    (one_stray_value, ["labeled", "02.png", "label 9", "7 pixels", "classes 0..2", "fix the file"]),
    (label_of_another_size, ["labeled", "00.png", "60x37", "00.jpg is 60x40", "write the label at the size"]),
    (truncated_photograph, ["ood: 1 file", "web/3.jpg", "damaged", "fix or remove them"]),
    (text_for_a_photograph, ["unlabeled: 1 file", "05.jpg", "damaged or not an image", "fix or remove them"]),
    (vocabulary_with_a_class_missing, ["vocabulary.json", "2 classes, but the dataset has 3", "one entry for each"]),
    (vocabulary_in_another_order, ["vocabulary.json", "class 1 is 'bar', in the dataset 'blob'", "dataset's order"]),
    (no_vocabulary, ["config.ovs.vocabulary", "data/custom/vocabulary.json", "No such file", "path of a JSON file"]),
    (no_ood_image, ["config.data.ood_root=data/custom/ood", "no image below", "put images there"]),
    (
        labels_dir_among_images,
        ["config.ovs.labels_dir=data/custom/ood/labels", "is below", "choose another labels_dir"],
    ),
]


@pytest.mark.parametrize(("spoil", "parts"), BROKEN, ids=[spoil.__name__ for spoil, _ in BROKEN])
def test_a_broken_tree_is_told_with_what_to_mend(root, capsys, spoil, parts):
    status, text = check(capsys, **(spoil(root) or {}))
    assert status == 1
    faults = faults_of(text)
    told = [fault for fault in faults if all(part in fault for part in parts)]
    assert told, text
    assert text.splitlines()[-1] == f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    consequences = {no_root: 4, labels_from_one: 2}  # what lies below the root; both splits with labels
    assert len(faults) == consequences.get(spoil, 1), text


@pytest.mark.parametrize("spoil", [spoil for spoil, _ in BROKEN if "vocabulary" not in spoil.__name__])
def test_training_refuses_what_is_a_fault_of_data(root, spoil):
    config = custom.get_config().unlock()
    config.update_from_flattened_dict({**WEIGHTS, **(spoil(root) or {})})
    with pytest.raises(InputError):
        inspect(config).usable()


def test_all_faults_are_told_at_once_and_the_rest_is_still_looked_at(root, capsys):
    for spoil in (no_split, colored_label, label_of_another_size, id_without_file, truncated_photograph, no_vocabulary):
        spoil(root)
    status, text = check(capsys)
    assert status == 1
    assert text.splitlines()[-1] == "6 faults"
    rows = [line.split() for line in text.splitlines()]
    assert ["unlabeled", "4", "1", "60x40", "60x40", "60x40", "3", "JPEG", "RGB"] in rows
    assert ["1", "2", "16.67", "%", "blob"] in rows


def test_without_a_class_list_values_are_told_but_not_judged(root, capsys):
    no_class_list(root)
    one_stray_value(root)
    _, text = check(capsys)
    assert text.splitlines()[-1] == "1 fault"
    assert any(line.split()[:2] == ["9", "1"] for line in text.splitlines())


def test_values_of_no_class_are_in_the_table_with_an_example(root, capsys):
    one_stray_value(root)
    _, text = check(capsys)
    (row,) = [line for line in text.splitlines() if line.startswith("9 ")]
    assert "(no class)" in row
    assert "02.png" in row


def test_files_that_may_be_passed_over_are_a_warning(root, capsys):
    id_without_file(root)
    status, text = check(capsys, **{"data.max_bad_records": 1})
    assert status == 0
    assert "1 training file(s) cannot be read and will be passed over" in text
    assert text.splitlines()[-1] == "usable"


def overlapping_splits(root):
    write_text(root / "splits/val.txt", (root / "splits/labeled.txt").read_text())


def image_listed_twice(root):
    lines = (root / "splits/unlabeled.txt").read_text()
    write_text(root / "splits/unlabeled.txt", lines + lines)


def copy_among_ood_images(root):
    (root / "ood/copy.jpg").write_bytes((root / "photos/07.jpg").read_bytes())


def class_never_labeled(root):
    for i in range(3):
        write_label(root / f"indices/0{i}.png", np.where(label() == 2, 0, label()).astype(np.uint8))


def class_never_validated(root):
    for i in (7, 8):
        write_label(root / f"indices/0{i}.png", np.where(label() == 1, 0, label()).astype(np.uint8))


def files_of_other_types(root):
    for name in ("a.gif", "web/b.GIF", "readme"):
        write_text(root / "ood" / name, "x")


def tiny_photograph(root):
    Image.new("RGB", (8, 8)).save(root / "photos/00.jpg")
    write_label(root / "indices/00.png", np.array([[0, 1], [2, 255]], np.uint8).repeat(4, 0).repeat(4, 1))


def vocabulary_of_other_names(root):
    write_vocabulary(root, {"Floor": ["floor"], "spot": ["spot"], "bar": ["bar"]})


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (overlapping_splits, ["3 image(s) of the labeled split are in the val split too (photos/00"]),
        (image_listed_twice, ["unlabeled: 4 image(s) are listed more than once", "config.data.unlabeled_split="]),
        (copy_among_ood_images, ["ood: 1 image(s) hold the bytes", "ood/copy.jpg is data/custom/photos/07.jpg"]),
        (class_never_labeled, ["labeled: 1 of 3 classes in no label (2 bar)", "add labeled images"]),
        (class_never_validated, ["val: 1 of 3 classes in no label (1 blob)", "counts as IoU 0"]),
        (files_of_other_types, ["ood: 3 file(s) are no JPEG, PNG or WebP", "2 .gif; 1 without suffix", "convert them"]),
        (
            tiny_photograph,
            [
                "labeled: 1 image(s) have a long side below an eighth of config.data.crop_size=321",
                "00.jpg is 8x8",
                "padding",
            ],
        ),
        (vocabulary_of_other_names, ["1 class(es) have names that custom has not: class 1 is 'spot'", "'blob'"]),
    ],
)
def test_what_is_allowed_but_worth_a_look_is_a_warning(root, capsys, spoil, parts):
    spoil(root)
    status, text = check(capsys)
    assert status == 0
    told = text.split("\nwarnings\n")[1].strip().splitlines()
    assert any(all(part in line for part in parts) for line in told), text


def test_orientations_are_applied_and_counted_and_so_are_labels_that_are_not_read(root, capsys):
    for folder, name, orientation in (("photos", "00.jpg", 3), ("photos", "03.jpg", 6), ("indices", "01.png", 2)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(root / folder / name).save(root / folder / name, exif=exif)
    status, text = check(capsys)
    assert status == 0
    assert "labeled: 1 image(s) and 1 label(s) carry an EXIF orientation, which is applied" in text.splitlines()
    assert "unlabeled: 1 image(s) and 0 label(s) carry an EXIF orientation, which is applied" in text.splitlines()
    assert "unlabeled: its list names 4 labels, which are not read" in text.splitlines()


def test_names_with_spaces_comments_and_byte_order_marks_are_read(root, capsys):
    (root / "photos/03.jpg").rename(root / "photos/my photo.jpg")
    (root / "indices/03.png").rename(root / "indices/my photo.png")
    lines = (root / "splits/unlabeled.txt").read_text().splitlines()
    lines[0] = "photos/my photo.jpg\tindices/my photo.png"
    write_text(root / "splits/unlabeled.txt", "\n".join(["# mine", *lines]))
    for name in ("classes.json", "vocabulary.json", "splits/val.txt"):
        (root / name).write_bytes(b"\xef\xbb\xbf" + (root / name).read_bytes())
    assert check(capsys)[0] == 0


def test_only_what_the_method_reads_is_looked_at(root, capsys):
    no_ood_image(root)
    no_vocabulary(root)
    assert check(capsys, **{"method.ood": "none"})[0] == 0
    (root / "splits/unlabeled.txt").unlink()
    status, text = check(capsys, **{"method.name": "supervised", "method.ood": "none"})
    assert status == 0
    assert "vocabulary" not in text
