import dataclasses
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from semiovs_jax.convert import main
from semiovs_jax.models.clip.convnext_params import convert_convnext, infer_convnext_config
from semiovs_jax.models.clip.file import ClipConfig, load_clip, parameter_shapes
from semiovs_jax.models.clip.params import convert_clip
from semiovs_jax.models.clip.text_params import convert_text
from semiovs_jax.weights.files import file_sha256, load_weights
from semiovs_jax.weights.keys import WeightMismatchError, flatten
from tests.fake_torch import FakeTensor, fake_torch
from tests.models.clip.tiny_convnext import TEXT, VISUAL, by_authors, normalized_before_pooling, text, visual

SED = "sem_seg_head.predictor.clip_model."
LARGE = dataclasses.replace(VISUAL, head_width=7)


def target(config=VISUAL):
    return parameter_shapes(ClipConfig(config, TEXT))["visual"]


@pytest.mark.parametrize("config", [VISUAL, LARGE, dataclasses.replace(VISUAL, depths=(2, 1, 12, 1))])
def test_config_is_read_off_the_shapes(config):
    for source in (visual(config), by_authors(visual(config)), visual(config, prefix=SED)):
        assert infer_convnext_config(source) == config


@pytest.mark.parametrize("config", [VISUAL, LARGE])
@pytest.mark.parametrize("spell", [by_authors, normalized_before_pooling])
def test_every_spelling_gives_the_same_tower(config, spell):
    expected = convert_convnext(visual(config), target(config)).values
    spelled = spell(visual(config))
    assert spelled.keys() != visual(config).keys()
    found = convert_convnext(spelled, target(config)).values
    assert found.keys() == expected.keys() == target(config).keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_axes_are_ours():
    source = visual(LARGE)
    values = convert_convnext(source, target(LARGE)).values
    block = "visual.trunk.stages.2.blocks.1"
    for path, key, axes in (
        ("stem/kernel", "visual.trunk.stem.0.weight", (2, 3, 1, 0)),
        ("stages/1/downsample/conv/kernel", "visual.trunk.stages.1.downsample.1.weight", (2, 3, 1, 0)),
        ("stages/2/blocks/1/depthwise/kernel", f"{block}.conv_dw.weight", (2, 3, 1, 0)),
        ("stages/2/blocks/1/expand/kernel", f"{block}.mlp.fc1.weight", (1, 0)),
        ("stages/2/blocks/1/gamma", f"{block}.gamma", (0,)),
        ("head/hidden/kernel", "visual.head.mlp.fc1.weight", (1, 0)),
        ("head/projection/kernel", "visual.head.mlp.fc2.weight", (1, 0)),
    ):
        np.testing.assert_array_equal(values[path], source[key].transpose(axes), err_msg=path)


def test_the_rest_of_a_whole_model_is_dropped_by_name():
    source = visual(prefix=SED) | {f"{SED}ln_final.bias": np.zeros(3), "decoder.weight": np.zeros(2)}
    assert convert_convnext(source, target()).dropped == (f"{SED}ln_final.bias", "decoder.weight")


def test_all_mismatches_are_told_at_once():
    source = visual()
    del source["visual.trunk.stages.2.blocks.1.mlp.fc2.bias"]
    source["visual.trunk.stages.0.blocks.0.conv_dw.weight"] = np.zeros((4, 1, 5, 5), np.float32)
    source["visual.trunk.stages.0.blocks.0.mlp.grn.weight"] = np.zeros(16, np.float32)
    source["visual.trunk.norm.bias"] = np.zeros(10, np.float32)
    with pytest.raises(WeightMismatchError) as caught:
        convert_convnext(source, target(), name="clip.bin")
    for part in (
        "clip.bin",
        "stages/2/blocks/1/contract/bias",
        "depthwise/kernel has shape (5, 5, 1, 4), expected (7, 7, 1, 4)",
        "visual.trunk.stages.0.blocks.0.mlp.grn.weight (16,)",
        "head/norm/bias <- visual.trunk.head.norm.bias, visual.trunk.norm.bias",
    ):
        assert part in str(caught.value)


def test_other_networks_are_refused():
    with pytest.raises(InputError, match=r"vit\.pt: no ConvNeXt image tower"):
        infer_convnext_config({"visual.conv1.weight": np.zeros(2)}, name="vit.pt")
    with pytest.raises(InputError, match=r"two\.pt: no ConvNeXt image tower.*once"):
        infer_convnext_config(visual() | visual(prefix="ema."), name="two.pt")
    with pytest.raises(InputError, match=r"xx\.pt: holds convnext_xxlarge"):
        infer_convnext_config(visual(dataclasses.replace(VISUAL, depths=(3, 4, 30, 3))), name="xx.pt")


@pytest.mark.parametrize(
    ("lost", "message"),
    [("head.proj", "lacks head/projection/kernel"), ("blocks", "lacks its blocks"), ("stages.1.b", "stages/1/blocks")],
)
def test_a_tower_whose_sizes_cannot_be_told_is_refused(lost, message):
    source = {key: value for key, value in visual().items() if lost not in key}
    with pytest.raises(InputError, match=message):
        infer_convnext_config(source)


@pytest.mark.parametrize("text_prefix", ["", "text."])
@pytest.mark.parametrize("spell", [dict, by_authors])
def test_a_whole_clip(spell, text_prefix):
    source = spell(visual()) | text(text_prefix)
    converted = convert_clip(source, "clip.safetensors")
    assert converted.dropped == (f"{text_prefix}logit_scale",)
    config = ClipConfig.from_json(converted.metadata["config"])
    assert config == ClipConfig(VISUAL, TEXT)
    expected = {f"visual/{path}": v for path, v in convert_convnext(visual(), target()).values.items()}
    expected |= {f"text/{path}": v for path, v in convert_text(text(), parameter_shapes(config)["text"]).values.items()}
    assert converted.values.keys() == expected.keys()
    for path, value in converted.values.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_faults_of_both_towers_are_told_at_once():
    source = visual() | text() | {"visual.trunk.surprise": np.zeros(1), "surprise": np.zeros(1)}
    del source["visual.trunk.stem.1.bias"], source["ln_final.weight"]
    with pytest.raises(WeightMismatchError) as caught:
        convert_clip(source, "clip.bin")
    for part in ("visual.trunk.surprise (1,)", "    surprise (1,)", "visual/stem_norm/bias", "text/final_norm/scale"):
        assert part in str(caught.value)


def test_towers_of_two_models_are_refused():
    source = visual(dataclasses.replace(VISUAL, embed_dim=8)) | text()
    with pytest.raises(InputError, match=r"clip\.bin: embed_dim is 8 in the image tower and 5 in the text tower"):
        convert_clip(source, "clip.bin")


def written_as_safetensors(folder, source, monkeypatch):
    path = folder / "open_clip_pytorch_model.safetensors"
    save_file(source, path)
    return path


def written_as_bin(folder, source, monkeypatch):
    """A PyTorch file, read through a stand-in for PyTorch."""
    path = folder / "open_clip_pytorch_model.bin"
    path.write_bytes(bytes(2**24))  # a tensor never has more bytes than its file
    loaded = {key: FakeTensor(value) for key, value in source.items()}
    monkeypatch.setitem(sys.modules, "torch", fake_torch({"state_dict": loaded}))
    return path


@pytest.mark.parametrize("write", [written_as_safetensors, written_as_bin])
def test_the_command_reads_both_files_of_open_clip(tmp_path, monkeypatch, capsys, write):
    source, out = write(tmp_path, visual() | text(), monkeypatch), tmp_path / "clip.safetensors"
    assert main([str(source), str(out), "--kind=clip"]) == 0
    assert "dropped logit_scale" in capsys.readouterr().out
    clip = load_clip(str(out))
    assert clip.config == ClipConfig(VISUAL, TEXT)
    assert flatten(clip.visual).keys() == target().keys()
    metadata = load_weights(out)[1]
    assert metadata["source"] == source.name
    assert metadata["source_sha256"] == file_sha256(source)
