import dataclasses

import jax
import numpy as np
import pytest

from semiovs_jax.benchmarks.labeling.models import (
    make_labeler,
    maskclip_architecture,
    patchwork,
    random_text,
    sed_architecture,
)
from semiovs_jax.models.clip.vit import ClipVitConfig
from semiovs_jax.ovs.maskclip import MaskClip
from semiovs_jax.ovs.vocabulary import Concept, Vocabulary
from tests.ovs import tiny_sed

torch = pytest.importorskip("torch", reason="needs the extra bench")

from semiovs_jax.benchmarks.labeling.__main__ import write_model  # noqa: E402
from semiovs_jax.benchmarks.labeling.ours import OurLabeling  # noqa: E402
from semiovs_jax.benchmarks.labeling.pytorch.random_weights import draw_weights  # noqa: E402
from semiovs_jax.benchmarks.labeling.pytorch.side import TorchLabeling, make_module  # noqa: E402

VOCABULARY = Vocabulary(
    name="toys",
    source="a test",
    classes=("background", "ball", "kite"),
    concepts=(
        *(Concept(0, (name,)) for name in ("sky", "grass", "sand", "sea")),
        Concept(1, ("ball", "globe")),
        Concept(1, ("marble",)),
        Concept(2, ("kite",)),
    ),
    templates=("a {}.",),
    origin="toys.json",
)
LABEL_SIZE = (30, 50)
LINEAR_HEAD = dataclasses.replace(tiny_sed.CONFIG.visual, depths=(1, 1, 1, 1))
MLP_HEAD = dataclasses.replace(LINEAR_HEAD, head_width=9)
ATOL = 1e-4


def both(architecture, side, **settings):
    """PyTorch's module with random weights, this project's labeler with the same weights, and their inputs."""
    module = make_module(architecture).eval().requires_grad_(False)
    draw_weights(module, seed=0)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    text = random_text(architecture)
    return module, make_labeler(architecture, text, state, image_size=side, **settings), text, patchwork(side, count=2)


def computed(labeler, image):
    """Concepts' probabilities or classes' scores, and labels, of one program: compiling takes most of the time."""
    network = labeler.scores if isinstance(labeler, MaskClip) else labeler.probabilities

    def run(weights, image):
        return network(weights, image), labeler.label(weights, image, label_size=LABEL_SIZE)

    return jax.device_get(jax.jit(run)(labeler.weights, image))


def assert_same_labels(found, expected):
    np.testing.assert_allclose(found[1], expected.confidence, atol=ATOL)
    assert (found[0].numpy() == expected.label).mean() > 0.99
    assert len(np.unique(expected.label)) > 1


@pytest.mark.parametrize(("visual", "top_k"), [(LINEAR_HEAD, 0), (MLP_HEAD, 1)], ids=["exact", "fast"])
def test_sed(visual, top_k):
    architecture = sed_architecture(visual, tiny_sed.CONFIG.aggregator, VOCABULARY)
    module, labeler, text, image = both(architecture, 64, top_k=top_k)
    expected, expected_label = computed(labeler, image)
    inputs = torch.from_numpy(image), torch.from_numpy(text)
    found = module.probabilities(*inputs, top_k).numpy()
    np.testing.assert_allclose(found, expected, atol=ATOL)
    assert expected.std() > 0.01
    assert_same_labels(module(*inputs, LABEL_SIZE, top_k), expected_label)
    kept = expected.any((2, 3))
    np.testing.assert_array_equal(found.any((2, 3)), kept)
    if top_k:
        assert kept.any(1).all()
        assert (kept[0] != kept[1]).any(), "choose a seed by which the images keep different concepts"
    else:
        assert kept.all()


def tiny_maskclip(**fields):
    visual = ClipVitConfig(patch_size=8, width=16, num_layers=3, num_heads=2, embed_dim=6, **fields)
    return maskclip_architecture(visual, VOCABULARY, logit_scale=20.0)


@pytest.mark.parametrize(("eps", "activation", "table"), [(1e-5, "quick_gelu", 32), (1e-6, "gelu", 64)])
def test_maskclip(eps, activation, table):
    architecture = tiny_maskclip(eps=eps, activation=activation, image_size=(table, table))
    module, labeler, text, image = both(architecture, 60)
    expected, expected_label = computed(labeler, image)
    inputs = torch.from_numpy(image), torch.from_numpy(text)
    found = module.scores(*inputs).numpy()
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=ATOL)
    assert expected.std() > 0.1
    assert_same_labels(module(*inputs, LABEL_SIZE), expected_label)


def test_workers_label_the_same_batch(tmp_path):
    write_model(tmp_path, tiny_maskclip(image_size=(32, 32)), image_size=64, images=3, weights=True)
    planes = []
    for number, worker in enumerate((OurLabeling(), TorchLabeling())):
        seconds = worker.prepare(
            folder=str(tmp_path), batch_size=2, precision="float32", top_k=0, class_chunk=0, label_size=LABEL_SIZE
        )
        usage = worker.measure(seconds=0)
        assert seconds > 0
        assert usage["batches"] == 1
        assert worker.peaks()["host"] > 0
        worker.label(str(tmp_path / f"{number}.npz"))
        planes.append(dict(np.load(tmp_path / f"{number}.npz")))
    assert planes[0]["label"].shape == (2, *LABEL_SIZE)
    np.testing.assert_allclose(planes[0]["confidence"], planes[1]["confidence"], atol=ATOL)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_changes_little(tmp_path, autocast):
    write_model(tmp_path, tiny_maskclip(image_size=(32, 32)), image_size=64, images=1, weights=True)
    found = {}
    for precision in ("float32", "bfloat16"):
        worker = TorchLabeling()
        task = {"precision": precision, "autocast": autocast, "label_size": LABEL_SIZE, "folder": str(tmp_path)}
        worker.prepare(batch_size=1, top_k=0, class_chunk=0, **task)
        found[precision] = worker.to_host(worker.run()[1])
    difference = np.abs(found["float32"] - found["bfloat16"])
    assert 0 < difference.mean() < 0.02
