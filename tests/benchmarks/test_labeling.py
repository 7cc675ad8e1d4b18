import threading
import time

import jax
import numpy as np
import pytest

from semiovs_jax.benchmarks.labeling.__main__ import Comparison, Side, report
from semiovs_jax.benchmarks.labeling.job import DeviceClock, measure_job
from semiovs_jax.benchmarks.labeling.models import MODELS, architecture, make_labeler, patchwork, random_text
from semiovs_jax.benchmarks.timing import Usage, repeat
from semiovs_jax.models.clip.vit import ClipVitConfig
from semiovs_jax.ovs.vocabulary import load_vocabulary
from tests.fake_ovs import ColorOVS


def test_the_report_divides_round_by_round():
    ours = Side([Usage(2, 1.0, 2.0), Usage(2, 2.0, 4.0)], 3.0, {"host": 10**9, "device": None})
    other = Side([Usage(1, 1.0, 2.0), Usage(1, 1.0, 2.0)], 1.0, {"host": 2 * 10**9, "device": 3 * 10**9})
    job = {"images_per_second": 7.0, "device_wait": 0.0123}
    lines = "\n".join(report(Comparison({"ours": ours, "PyTorch": other}, 12.0, 0.999, 1e-5, job), batch_size=4))
    assert "6 (4 to 8) images/s, 0.375 core-seconds an image, peak host 1.00 GB, first batch in 3.0 s" in lines
    assert "peak host 2.00 GB, device 3.00 GB" in lines
    assert "1.5 (1 to 2) by the clock, 1.5 (1 to 2) a core-second" in lines
    assert "99.90 %" in lines
    assert "12 concepts" in lines
    assert "7 images/s, the device waits 1.2 % of the time" in lines


def test_without_pytorch_only_our_figures_are_reported():
    ours = Side([Usage(1, 1.0, 1.0)], 1.0, {"host": 1, "device": None})
    lines = list(report(Comparison({"ours": ours}, 1.0, None, None, None), batch_size=1))
    assert not any("PyTorch" in line or "alike" in line for line in lines)


def test_a_turn_has_one_batch_at_least():
    calls = []
    assert repeat(lambda: calls.append(1), seconds=0).batches == len(calls) == 1
    assert repeat(lambda: calls.append(1), seconds=0.01).batches > 1


def test_images_are_patches_of_one_color():
    images = patchwork(10, count=2)
    assert images.shape == (2, 10, 10, 3)
    assert len(np.unique(images[0].reshape(-1, 3), axis=0)) == 16
    assert (images[0] != images[1]).all()


@pytest.mark.parametrize("model", MODELS)
def test_every_concept_has_an_embedding(model):
    content = architecture(model, load_vocabulary("voc21"))
    text = random_text(content)
    assert len(text) == sum(content["concepts_per_class"])
    np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, rtol=1e-5)


def test_without_a_state_dict_weights_are_random():
    content = architecture("maskclip", load_vocabulary("voc21"))
    tiny = ClipVitConfig(patch_size=8, width=16, num_layers=1, num_heads=2, embed_dim=6, image_size=(16, 16))
    content["visual"] = vars(tiny)
    labeler = make_labeler(content, random_text(content), None, image_size=16)
    assert jax.eval_shape(labeler.scores, labeler.weights, patchwork(16)).shape == (1, 2, 2, 21)


def test_a_device_without_a_batch_waits():
    events = [threading.Event() for _ in range(3)]
    clock = DeviceClock(wait=threading.Event.wait)
    clock.call(lambda: events[0])
    clock.call(lambda: events[1])
    for event in events[:2]:
        time.sleep(0.05)
        event.set()
    time.sleep(0.2)  # without a batch
    clock.call(lambda: events[2])
    time.sleep(0.1)
    events[2].set()
    seconds, share = clock.stop()
    assert seconds >= 0.3
    assert 0.15 <= share * seconds <= seconds - 0.1


def test_a_device_that_blocks_the_call_does_not_wait():
    clock = DeviceClock(wait=lambda outputs: None)
    for _ in range(3):
        clock.call(lambda: time.sleep(0.1))
    seconds, share = clock.stop()
    assert seconds >= 0.2
    assert share < 0.1


def test_a_job_is_measured():
    found = measure_job(ColorOVS(), images=5, batch_size=2, num_threads=1)
    assert found["images_per_second"] > 0
    assert 0 <= found["device_wait"] < 1
