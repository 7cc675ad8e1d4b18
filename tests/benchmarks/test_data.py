import dataclasses
import itertools
import multiprocessing
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.images.decode import decode_image, decode_label
from data_pipelines.pipeline import STREAMS
from data_pipelines.sources.records import File
from semiovs_jax.benchmarks import data, timing
from semiovs_jax.benchmarks.photographs import draw_photograph, write_photographs
from semiovs_jax.benchmarks.timing import Usage, consume, core_seconds, starvation

ARGUMENTS = SimpleNamespace(
    images=4, batch_size=2, crop_size=33, num_threads=1, torch_workers=1, batches=2, rounds=2, step_ms=["0", "20"]
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, ARGUMENTS.images, (60, 80))
    return folder


def test_photographs_are_as_many_bytes_as_real_ones(tmp_path):
    image, label = draw_photograph(np.random.default_rng(0))
    assert (image.shape, label.shape) == ((375, 500, 3), (375, 500))
    Image.fromarray(image).save(tmp_path / "x.jpg", quality=90)
    assert 50_000 < (tmp_path / "x.jpg").stat().st_size < 100_000
    assert 3 <= len(np.unique(label)) <= 7


def test_photographs_are_read_as_images_and_labels(root):
    lines = (root / "train.txt").read_text().splitlines()
    assert len(lines) == ARGUMENTS.images
    for line in lines:
        image, label = (root / name for name in line.split())
        assert decode_image(File(image)).shape == (60, 80, 3)
        assert decode_label(File(label), dataset_info("voc21")).shape == (60, 80)


def test_every_stage_takes_time(root):
    stages = data.stage_milliseconds(root, batch_size=2, crop_size=33, images=4, rounds=2)
    assert len(stages) == 5
    assert min(stages.values()) > 0


@pytest.mark.parametrize("stream", [*STREAMS, ""])
def test_streams_are_measured_alone_and_together(root, stream):
    usage = Usage(**data.run_part(f"ours/{stream}", root, ARGUMENTS))
    assert usage.batches == 2
    assert usage.core_seconds > 0
    assert usage.per_second == 2 / usage.seconds


def test_the_views_of_the_step_are_measured(root):
    assert Usage(**data.run_part("views", root, ARGUMENTS)).core_seconds > 0


def test_a_slow_device_starves_less(root):
    shares = data.run_part("ours/starvation", root, ARGUMENTS)
    assert shares.keys() == {"0", "20"}
    assert shares["0"] > shares["20"]


class _Clock:
    """Time that passes only in `sleep`."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_device_that_waits_a_quarter_of_the_time_is_starved_for_it(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(timing, "time", clock)
    batches = (clock.sleep(1.0) for _ in itertools.count())
    assert starvation(batches, 5, step_seconds=3.0) == 0.25


def _spin(seconds: float, done, leave) -> None:
    while time.process_time() < seconds:
        pass
    done.set()
    leave.wait(60)


def test_the_time_of_workers_counts_while_they_run_and_afterwards():
    context = multiprocessing.get_context("spawn")
    done, leave = context.Event(), context.Event()
    before = core_seconds()
    worker = context.Process(target=_spin, args=(2.0, done, leave))
    worker.start()
    assert done.wait(120)
    assert core_seconds() - before > 1.9
    leave.set()
    worker.join()
    assert core_seconds() - before > 1.9


def test_batches_to_warm_up_are_not_counted():
    drawn = itertools.count()
    usage = consume(drawn, batches=5, warm_up=3)
    assert next(drawn) == 8
    assert usage == dataclasses.replace(usage, batches=5)


def test_pytorchs_streams_make_every_view(root):
    pytest.importorskip(
        "torchvision", reason="needs the extra bench; torchvision does not fit PyTorch without CUDA, so dev lacks it"
    )
    import torch

    from semiovs_jax.benchmarks.torch_streams import torch_batches

    labeled, unlabeled, mix, ood = next(torch_batches(root, batch_size=2, crop_size=33, workers=0, seed=0))
    image, plane, mask = (2, 3, 33, 33), (2, 33, 33), torch.int64
    assert [tuple(part.shape) for part in labeled] == [image, plane]
    assert [tuple(part.shape) for part in unlabeled] == [image, image, image, plane, plane, plane]
    assert [tuple(part.shape) for part in mix] == [tuple(part.shape) for part in unlabeled]
    assert [tuple(part.shape) for part in ood] == [image, plane, image, image, plane, plane, plane]
    assert labeled[1].dtype == ood[1].dtype == mask
    assert ood[1].max() < 21
    assert set(torch.unique(unlabeled[3]).tolist()) <= {0, 255}
