from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data_pipelines.checking.survey import survey_split
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images import decode
from data_pipelines.sources.folders import FolderSource
from data_pipelines.sources.records import File
from tests.data_pipelines import tree

VOC = dataset_info("voc21")


def survey(source, info=VOC):
    with ThreadPoolExecutor(2) as pool:
        return list(survey_split(source, info, pool))


@pytest.fixture
def source(tmp_path):
    for id_ in ("0000", "0001", "0002"):
        tree.write_pair(tmp_path, id_)
    ids = ("0000", "0001", "0002")
    return FolderSource(
        tmp_path, tuple(f"JPEGImages/{i}.jpg" for i in ids), tuple(f"SegmentationClass/{i}.png" for i in ids)
    )


def test_good_records_have_facts_in_order_and_no_faults(source):
    records = survey(source)
    assert [record.image.size for record in records] == [tree.image(i).shape[:2] for i in range(3)]
    assert [set(record.label.values) for record in records] == [{0, i + 1, 255} for i in range(3)]
    assert not any(record.faults for record in records)


def test_all_faults_of_a_record_are_noted(source):
    (source.root / "JPEGImages/0000.jpg").unlink()
    Image.fromarray(tree.image(0)).save(source.root / "SegmentationClass/0000.png")
    plane = np.full((7, 9), 77, np.uint8)
    tree.write_label(source.root / "SegmentationClass/0002.png", plane)
    kinds = [[fault.kind for fault in record.faults] for record in survey(source)]
    assert kinds == [["unreadable", "mode"], [], ["range", "size"]]


def test_without_a_dataset_contents_are_not_judged(source):
    tree.write_label(source.root / "SegmentationClass/0002.png", np.full((7, 9), 77, np.uint8))
    assert [[fault.kind for fault in record.faults] for record in survey(source, None)] == [[], [], ["size"]]


def test_a_record_that_cannot_be_had_is_a_fault_of_its_own(source):
    class Damaged(FolderSource):
        def __getitem__(self, index):
            if index == 1:
                raise InputError("example 1 has no id; mend the dataset")
            return super().__getitem__(index)

    records = survey(Damaged(source.root, source.images))
    assert [record.faults for record in records] == [
        (),
        (("id", "record 1", "example 1 has no id; mend the dataset"),),
        (),
    ]


def test_a_photograph_that_only_the_training_decoder_reads_is_no_fault(source, monkeypatch):
    def refuse(*arguments):
        raise OSError("unknown")

    monkeypatch.setattr(decode.Image, "open", refuse)
    path = source.root / source.images[0]
    facts = decode.probe_image(File(path))
    assert facts == (str(path), "JPEG", "RGB", tree.image(0).shape[:2], path.stat().st_size, 1)
