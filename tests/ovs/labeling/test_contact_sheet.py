import base64
import io
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.labels.examples import encode_label
from data_pipelines.labels.store import FileStore
from semiovs_jax.ovs.labeling import contact_sheet
from semiovs_jax.ovs.labeling.contact_sheet import write_contact_sheet
from tests.data_pipelines.tree import open_stream
from tests.fake_ovs import label_config

AWKWARD = 'sub/<b>&"x"'


class Page(HTMLParser):
    """Captions, list entries and data URIs of a sheet; fails on anything that is not in the file itself."""

    def __init__(self, text: str):
        super().__init__()
        self.captions, self.entries, self.pictures, self.tags = [], [], [], []
        self._open = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in ("href", "srcset")
            for address in [value] if name == "src" else re.findall(r"url\((.*?)\)", value or ""):
                kind, content = address.removeprefix("data:image/").split(";base64,")
                self.pictures.append((kind, Image.open(io.BytesIO(base64.b64decode(content)))))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "figcaption":
            self.captions.append("")
        elif tag == "li":
            self.entries.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "figcaption" in self._open:
            self.captions[-1] += data
        elif "li" in self._open:
            self.entries[-1] += data


@pytest.fixture
def labels(tmp_path) -> Path:
    """Ten images, eight of them labeled: a third background, a third aeroplane, a third ignored."""
    info = dataset_info("voc21")
    store = FileStore(tmp_path / "labels", {"fingerprint": "f" * 64, "ovs": "color", "vocabulary": "<i>"}, info)
    store.begin()
    ids = [*(f"{i}" for i in range(9)), AWKWARD]
    examples, bad = [], {}
    label = np.repeat(np.array([0, 1, 255], np.uint8), 30)[None].repeat(60, 0)
    for i, id_ in enumerate(ids):
        path = tmp_path / "ood" / f"{id_}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((60, 90, 3), 20 * i, np.uint8)).save(path)
        if i not in (3, 4):
            confidence = np.where(label == 255, 0, 25 * i).astype(np.uint8)
            examples.append(encode_label(id_, label, confidence, info))
        else:
            bad[id_] = "damaged"
    store.write_part(0, examples, bad)
    store.finish(ids, {})
    return tmp_path


def write(folder: Path, **options) -> Page:
    config = label_config(folder / "ood", folder / "labels")
    source = open_stream(config.data, "ood", config.ovs.labels_dir)
    records = [source[i] for i in range(len(source))]
    path = write_contact_sheet(folder / "labels", records, dataset_info("voc21"), **options)
    assert path == folder / "labels" / "contact_sheet.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_sheet_shows_every_labeled_image_where_there_are_few(labels):
    page = write(labels)
    assert [caption.rsplit(" 90 x 60", 1)[0] for caption in page.captions] == [
        *(str(i) for i in range(9) if i not in (3, 4)),
        AWKWARD,
    ]
    assert page.tags.count("b") == len(page.captions)  # names are escaped
    assert page.tags.count("i") == 1  # the color scale


def test_pictures_are_photograph_label_and_confidence(labels):
    kinds = [kind for kind, _ in write(labels).pictures]
    assert kinds == ["jpeg", "png", "png"] * 8
    (_, photo), (_, plane), (_, heat) = write(labels, images=8).pictures[-3:]
    assert photo.size == plane.size == heat.size == (90, 60)
    assert np.abs(np.asarray(photo, int) - 20 * 9).max() < 4
    info = dataset_info("voc21")
    painted = np.asarray(plane.convert("RGBA"))
    np.testing.assert_array_equal(painted[0, [0, 30], :3], info.palette[:2])
    background, aeroplane, ignored = painted[0, [0, 30, 89], 3]
    assert aeroplane > 128 > background > ignored == 0  # what is labeled background stays visible
    warm, cold = np.asarray(heat.convert("RGB"), int)[0, [0, 89]]
    assert warm.sum() > cold.sum()


def test_legend_histogram_and_shares_hold_the_classes_that_occur(labels):
    entries = write(labels, images=1).entries
    assert entries == [
        "background33.3 %",
        "aeroplane33.3 %",
        "ignored33.3 %",
        *(f"{name} 33.3 %" for name in ("background", "aeroplane", "ignored")),
    ]


def test_the_sample_is_spread_evenly_and_always_the_same(labels):
    page = write(labels, images=3)
    first = (labels / "labels/contact_sheet.html").read_bytes()
    assert [caption[:1] for caption in page.captions] == ["0", "6", AWKWARD[:1]]
    write(labels, images=3)
    assert (labels / "labels/contact_sheet.html").read_bytes() == first


def test_large_images_are_shrunk(labels):
    Image.new("RGB", (900, 600)).save(labels / "ood/0.png")
    info = dataset_info("voc21")
    store = FileStore(labels / "labels", {"fingerprint": "f" * 64}, info)
    label, confidence = np.zeros((600, 900), np.uint8), np.full((600, 900), 255, np.uint8)
    store.write_part(0, [encode_label("0", label, confidence, info)], {})
    page = write(labels, images=1)
    assert {picture.size for _, picture in page.pictures} == {(320, 213)}
    assert page.captions == ["0 900 x 600"]


def test_unfinished_labels_can_be_looked_at(labels):
    path = labels / "labels/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: manifest[key] for key in ("fingerprint", "ovs")} | {"finished": False}))
    assert len(write(labels).captions) == 8


def test_no_labels_and_no_images_are_refused(labels):
    with pytest.raises(InputError, match="images=0"):
        write(labels, images=0)
    (labels / "labels/manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json.*make the labels first"):
        write(labels)


def test_command_line(labels, caplog, monkeypatch):
    class Flags:
        config = label_config(labels / "ood", labels / "labels")
        images = 2

    monkeypatch.setattr("sys.argv", ["semiovs label", "--config=mine.py"])
    with caplog.at_level(logging.INFO, "semiovs_jax"):
        contact_sheet.main(Flags)
    page = labels / "labels/contact_sheet.html"
    assert f"wrote {page}; open it in a browser\nnext: semiovs train --config=mine.py --workdir=RUN" in caplog.text
    assert len(Page((labels / "labels/contact_sheet.html").read_text()).captions) == 2
