"""Batches by number of workers, restored, stalled, and after a worker's death."""

import os
import signal
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.loading.batches import BatchIterator
from data_pipelines.loading.worker_log import BadRecords, HeldRecords
from data_pipelines.pipeline import STREAMS
from tests.data_pipelines import tree
from tests.data_pipelines.tree import write_tree


class Numbers:
    """Records 0, 1, ...; one of them kills its process or hangs, once told to by a file."""

    def __init__(self, held: HeldRecords, folder: Path, fatal: int = -1, *, hangs: bool = False):
        self.held, self.folder, self.fatal, self.hangs = held, folder, fatal, hangs

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> np.ndarray:
        with self.held.hold(f"photo_{index}.jpg"):
            if index == self.fatal:
                (self.folder / "pid").write_text(str(os.getpid()))
                if self.hangs:
                    time.sleep(30)
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            return np.full(3, index)


def iterator(folder: Path, num_workers: int, fatal: int = -1, *, hangs: bool = False):
    held = HeldRecords()
    batches = grain.MapDataset.source(Numbers(held, folder, fatal, hangs=hangs)).batch(2)
    return BatchIterator(
        batches,
        num_workers=num_workers,
        num_threads=1,
        prefetch=2,
        stall_seconds=120.0,
        bad=BadRecords(0),
        held=held,
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_any_position_is_restored_with_any_number_of_workers(num_workers: int, tmp_path: Path):
    batches = iterator(tmp_path, num_workers)
    try:
        assert [next(batches)[0, 0] for _ in range(5)] == [0, 2, 4, 6, 8]
        assert batches.get_state() == {"next_index": 5}
        batches.set_state({"next_index": 301})
        assert next(batches)[:, 0].tolist() == [602, 603]
        other = iterator(tmp_path, 0)
        other.set_state(batches.get_state())
        np.testing.assert_array_equal(next(other), next(batches))
    finally:
        batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_a_worker_that_dies_is_reported_with_the_record_it_held(tmp_path: Path):
    batches = iterator(tmp_path, 2, fatal=6)
    taken: list[int] = []
    with pytest.raises(InputError, match=r"a data worker died.*exit code -9.*photo_6\.jpg \(process (\d+)") as caught:
        taken.extend(int(batch[0, 0]) for batch in batches)
    assert taken == [0, 2, 4][: len(taken)]  # what the worker had finished but not handed over is lost with it
    assert f"process {(tmp_path / 'pid').read_text()}" in str(caught.value)
    assert "lower config.data.num_workers" in str(caught.value)
    batches.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_record_that_hangs_is_reported(num_workers: int, tmp_path: Path):
    batches = iterator(tmp_path, num_workers, fatal=2, hangs=True)
    next(batches)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists():  # the record is held, and what follows is not a matter of time
        assert time.monotonic() < deadline
        time.sleep(0.01)
    batches.stall_seconds = 0.5
    with pytest.raises(InputError, match=r"no batch came for 0\.5 s.*being read: photo_2\.jpg"):
        next(batches)


def test_batches_do_not_depend_on_workers_or_processes(tmp_path: Path):
    config = write_tree(tmp_path)
    found = {}
    for num_workers in (0, 1, 2):
        config.num_workers = num_workers
        for process_count in (1, 2) if num_workers != 1 else (1,):
            parts = [
                tree.train_data(config, STREAMS, batch_size=4, seed=3, process_index=index, process_count=process_count)
                for index in range(process_count)
            ]
            found[num_workers, process_count] = [
                {
                    (stream, field): np.concatenate([rows[stream][field] for rows in local])
                    for stream in STREAMS
                    for field in local[0][stream]
                }
                for local in ([next(part.iterator) for part in parts] for _ in range(6))
            ]
            for part in parts:
                part.iterator.close()
    for key, batches in found.items():
        for batch, expected in zip(batches, found[0, 1], strict=True):
            for field, array in expected.items():
                np.testing.assert_array_equal(batch[field], array, err_msg=f"{key} {field}")


def test_bad_records_of_workers_are_logged_here_and_counted_together(tmp_path: Path, caplog):
    config = write_tree(tmp_path)
    config.num_workers, config.max_bad_records = 2, 2
    bad = [tmp_path / "JPEGImages" / f"{index:04d}.jpg" for index in (4, 6)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:200])
    data = tree.train_data(config, ("unlabeled",), batch_size=2)
    for _ in range(8):
        next(data.iterator)
    data.iterator.close()
    assert len(data.bad_records) == 2
    messages = [record.message for record in caplog.records if "bad record" in record.message]
    assert len(messages) == 2
    assert all(any(path.name in message for message in messages) for path in bad)
