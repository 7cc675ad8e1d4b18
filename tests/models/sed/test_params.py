import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from semiovs_jax.convert import main
from semiovs_jax.models.clip.convnext_params import convert_convnext
from semiovs_jax.models.clip.text_params import convert_text
from semiovs_jax.models.sed.aggregator import SedConfig
from semiovs_jax.models.sed.file import SED, SedWeightsConfig, load_sed, parameter_shapes
from semiovs_jax.models.sed.params import convert_aggregator, convert_sed, infer_sed_config
from semiovs_jax.weights.files import file_sha256, load_weights
from semiovs_jax.weights.keys import WeightMismatchError, flatten
from tests.models.clip.tiny_convnext import TEXT, VISUAL, by_authors, tensors, text, visual, weight_and_bias

PREDICTOR = "sem_seg_head.predictor."
CONFIG = SedConfig(
    num_templates=3,
    width=8,
    decoder_widths=(7, 6, 4),
    level_widths=(8, 6, 4),
    guidance_widths=(4, 3, 2),
    num_heads=4,
    kernel_sizes=(9, 7, 5),
)
WHOLE = SedWeightsConfig(VISUAL, TEXT, CONFIG)


def aggregator(prefix: str = f"{PREDICTOR}transformer.") -> dict[str, np.ndarray]:
    """The aggregator under the names of SED."""
    links = (CONFIG.num_templates, *CONFIG.guidance_widths)
    widths = (CONFIG.width, *CONFIG.decoder_widths)
    shapes = weight_and_bias("conv1", CONFIG.width, CONFIG.num_templates, 7, 7)
    for i, guidance in enumerate(CONFIG.guidance_widths):
        before, after, size = widths[i], widths[i + 1], CONFIG.kernel_sizes[i]
        shapes |= weight_and_bias(f"decoder_guidance_projection.{i}.0", guidance, CONFIG.level_widths[i], 3, 3)
        shapes |= {f"decoder_corr_guidance_projection.{i}.0.weight": (links[i], guidance, 2, 2)}
        shapes |= {f"decoder_corr_guidance_projection.{i}.0.bias": (guidance,)}
        decoder = f"decoder{i + 1}"
        shapes |= {
            f"{decoder}.up.weight": (before, before - guidance, 2, 2),
            f"{decoder}.up.bias": (before - guidance,),
        }
        shapes |= {f"{decoder}.conv.double_conv.0.weight": (after, before + guidance, 3, 3)}
        shapes |= {f"{decoder}.conv.double_conv.3.weight": (after, after, 3, 3)}
        shapes |= weight_and_bias(f"{decoder}.conv.double_conv.1", after)
        shapes |= weight_and_bias(f"{decoder}.conv.double_conv.4", after)
        shapes |= {f"{decoder}.cnext.gamma": (before,)}
        shapes |= weight_and_bias(f"{decoder}.cnext.dwconv", before, 1, size, size)
        shapes |= weight_and_bias(f"{decoder}.cnext.norm", before)
        shapes |= weight_and_bias(f"{decoder}.cnext.pwconv1", 4 * before, before)
        shapes |= weight_and_bias(f"{decoder}.cnext.pwconv2", before, 4 * before)
        for part in "qkv":
            shapes |= weight_and_bias(f"{decoder}.attention.attention.{part}", before, before)
        shapes |= weight_and_bias(f"{decoder}.attention.MLP.0", 4 * before, before)
        shapes |= weight_and_bias(f"{decoder}.attention.MLP.2", before, 4 * before)
        shapes |= weight_and_bias(f"{decoder}.attention.norm1", before)
        shapes |= weight_and_bias(f"{decoder}.attention.norm2", before)
    for i, width in enumerate(widths):
        shapes |= weight_and_bias("head" if i == 3 else f"head{i}", 1, width, 3, 3)
    return tensors(shapes, prefix)


def whole(spell=dict) -> dict[str, np.ndarray]:
    clip = f"{PREDICTOR}clip_model."
    return spell(visual(prefix=clip)) | text(clip) | aggregator()


def target():
    return parameter_shapes(WHOLE)["aggregator"]


def test_config_is_read_off_the_shapes():
    assert infer_sed_config(aggregator()) == infer_sed_config(whole()) == CONFIG
    assert infer_sed_config(aggregator(""), num_heads=2) == dataclasses.replace(CONFIG, num_heads=2)


def test_every_tensor_has_its_place():
    source = aggregator("")
    values = convert_aggregator(source, target()).values
    assert values.keys() == target().keys()
    for path, key, axes in (
        ("embed/kernel", "conv1.weight", (2, 3, 1, 0)),
        ("image_guidance/2/kernel", "decoder_guidance_projection.2.0.weight", (2, 3, 1, 0)),
        ("correlation_guidance/1/kernel", "decoder_corr_guidance_projection.1.0.weight", (2, 3, 0, 1)),
        ("decoders/0/up/kernel", "decoder1.up.weight", (2, 3, 0, 1)),
        ("decoders/2/block/depthwise/kernel", "decoder3.cnext.dwconv.weight", (2, 3, 1, 0)),
        ("decoders/2/block/contract/kernel", "decoder3.cnext.pwconv2.weight", (1, 0)),
        ("decoders/1/attention/query/kernel", "decoder2.attention.attention.q.weight", (1, 0)),
        ("decoders/1/attention/key/kernel", "decoder2.attention.attention.k.weight", (1, 0)),
        ("decoders/1/attention/value/bias", "decoder2.attention.attention.v.bias", (0,)),
        ("decoders/1/attention/mlp/contract/kernel", "decoder2.attention.MLP.2.weight", (1, 0)),
        ("decoders/1/attention/norm2/scale", "decoder2.attention.norm2.weight", (0,)),
        ("decoders/0/conv1", "decoder1.conv.double_conv.0.weight", (2, 3, 1, 0)),
        ("decoders/0/norm1/scale", "decoder1.conv.double_conv.1.weight", (0,)),
        ("decoders/0/conv2", "decoder1.conv.double_conv.3.weight", (2, 3, 1, 0)),
        ("decoders/0/norm2/bias", "decoder1.conv.double_conv.4.bias", (0,)),
        ("heads/1/kernel", "head1.weight", (2, 3, 1, 0)),
        ("heads/3/kernel", "head.weight", (2, 3, 1, 0)),
    ):
        np.testing.assert_array_equal(values[path], source[key].transpose(axes), err_msg=path)


@pytest.mark.parametrize("spell", [dict, by_authors])
def test_a_whole_model_is_its_three_parts(spell):
    source = whole(spell)
    converted = convert_sed(source, "sed_model_base.pth")
    assert converted.dropped == (f"{PREDICTOR}clip_model.logit_scale",)
    assert SED.read(converted.metadata["config"]) == WHOLE
    shapes = parameter_shapes(WHOLE)
    parts = {
        "visual": convert_convnext(source, shapes["visual"]),
        "text": convert_text(source, shapes["text"]),
        "aggregator": convert_aggregator(source, shapes["aggregator"]),
    }
    expected = {f"{name}/{path}": value for name, part in parts.items() for path, value in part.values.items()}
    assert converted.values.keys() == expected.keys()
    for path, value in converted.values.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_what_training_leaves_beside_the_model_is_dropped_by_name():
    beside = ["pixel_mean", "clip_pixel_std", "criterion.empty_weight", f"{PREDICTOR}text_features_test"]
    converted = convert_sed({name: np.zeros(3) for name in beside} | whole(), "sed.pth")
    assert converted.dropped == (*beside, f"{PREDICTOR}clip_model.logit_scale")


def test_all_mismatches_are_told_at_once():
    source = whole()
    clip, ours = f"{PREDICTOR}clip_model.", f"{PREDICTOR}transformer."
    del source[f"{ours}decoder2.up.bias"], source[f"{clip}ln_final.bias"]
    source[f"{ours}decoder_corr_guidance_projection.0.0.weight"] = np.zeros((4, 4, 2, 2), np.float32)
    source[f"{ours}decoder4.up.bias"] = np.zeros(2)
    source[f"{clip}visual.trunk.norm_surprise"] = np.zeros(2)
    source["backbone.conv1.weight"] = np.zeros(2)
    with pytest.raises(WeightMismatchError) as caught:
        convert_sed(source, "sed.pth")
    for part in (
        "sed.pth",
        "aggregator/decoders/1/up/bias",
        "text/final_norm/bias",
        "aggregator/correlation_guidance/0/kernel has shape (2, 2, 4, 4), expected (2, 2, 3, 4)",
        f"{ours}decoder4.up.bias (2,)",
        f"{clip}visual.trunk.norm_surprise (2,)",
        "backbone.conv1.weight (2,)",
    ):
        assert part in str(caught.value)


def test_parts_of_two_models_are_refused():
    clip = f"{PREDICTOR}clip_model."
    other = visual(dataclasses.replace(VISUAL, embed_dim=8), prefix=clip)
    with pytest.raises(InputError, match=r"sed\.pth: embed_dim is 8 in the image tower and 5 in the text tower"):
        convert_sed(whole() | other, "sed.pth")
    other = visual(dataclasses.replace(VISUAL, widths=(4, 6, 9, 10)), prefix=clip)
    with pytest.raises(InputError, match=r"sed\.pth: the aggregator is guided by levels of \(8, 6, 4\) channels"):
        convert_sed(whole() | other, "sed.pth")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: visual() | text(), r"sed\.pth: no SED aggregator"),
        (lambda: aggregator(), r"sed\.pth: no ConvNeXt image tower"),
        (lambda: visual() | aggregator(), r"sed\.pth: no CLIP text tower"),
        (
            lambda: {key: value for key, value in whole().items() if "transformer.conv1.weight" not in key},
            r"sed\.pth: the aggregator lacks embed/kernel",
        ),
    ],
)
def test_other_networks_are_refused(source, message):
    with pytest.raises(InputError, match=message):
        convert_sed(source(), "sed.pth")


def test_the_command_writes_what_is_loaded(tmp_path):
    source, out = tmp_path / "sed.safetensors", tmp_path / "out.safetensors"
    save_file(whole(), source)
    assert main([str(source), str(out), "--kind=sed"]) == 0
    sed = load_sed(str(out))
    assert sed.config == WHOLE
    np.testing.assert_array_equal(sed.aggregator["heads"][3]["bias"], whole()[f"{PREDICTOR}transformer.head.bias"])
    assert flatten(sed.text).keys() == parameter_shapes(WHOLE)["text"].keys()
    assert load_weights(out)[1]["source_sha256"] == file_sha256(source)
