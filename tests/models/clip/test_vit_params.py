import dataclasses
import json
import re

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from semiovs_jax.convert import main
from semiovs_jax.models.clip.file import ClipConfig, load_clip, parameter_shapes
from semiovs_jax.models.clip.params import convert_clip
from semiovs_jax.models.clip.vit import ClipVit, ClipVitConfig
from semiovs_jax.models.clip.vit_params import convert_visual, infer_config
from semiovs_jax.weights.files import file_sha256, load_weights
from semiovs_jax.weights.keys import WeightMismatchError, flatten

CONFIG = ClipVitConfig(
    patch_size=4, width=8, num_layers=2, num_heads=2, mlp_ratio=3, embed_dim=5, image_size=(12, 12), eps=1e-6
)
FACTS = {"num_heads": 2, "eps": 1e-6, "activation": "quick_gelu"}


def tensors(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def openai_visual():
    D = CONFIG.width
    shapes = {
        "visual.class_embedding": (D,),
        "visual.positional_embedding": (10, D),
        "visual.conv1.weight": (D, 3, 4, 4),
        "visual.proj": (D, 5),
    }
    shapes |= {f"visual.ln_{k}.{leaf}": (D,) for k in ("pre", "post") for leaf in ("weight", "bias")}
    for i in range(CONFIG.num_layers):
        block = f"visual.transformer.resblocks.{i}"
        shapes |= {f"{block}.ln_{k}.{leaf}": (D,) for k in (1, 2) for leaf in ("weight", "bias")}
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * D, D),
            f"{block}.attn.in_proj_bias": (3 * D,),
            f"{block}.attn.out_proj.weight": (D, D),
            f"{block}.attn.out_proj.bias": (D,),
            f"{block}.mlp.c_fc.weight": (3 * D, D),
            f"{block}.mlp.c_fc.bias": (3 * D,),
            f"{block}.mlp.c_proj.weight": (D, 3 * D),
            f"{block}.mlp.c_proj.bias": (D,),
        }
    return tensors(shapes)


def openai_text():
    D = 4
    shapes = {
        "token_embedding.weight": (9, D),
        "positional_embedding": (6, D),
        "ln_final.weight": (D,),
        "ln_final.bias": (D,),
        "text_projection": (D, 5),
        "logit_scale": (),
        "transformer.resblocks.0.attn.in_proj_weight": (3 * D, D),
        "transformer.resblocks.0.attn.in_proj_bias": (3 * D,),
        "transformer.resblocks.0.attn.out_proj.weight": (D, D),
        "transformer.resblocks.0.attn.out_proj.bias": (D,),
        "transformer.resblocks.0.mlp.c_fc.weight": (4 * D, D),
        "transformer.resblocks.0.mlp.c_fc.bias": (4 * D,),
        "transformer.resblocks.0.mlp.c_proj.weight": (D, 4 * D),
        "transformer.resblocks.0.mlp.c_proj.bias": (D,),
    }
    shapes |= {f"transformer.resblocks.0.ln_{k}.{leaf}": (D,) for k in (1, 2) for leaf in ("weight", "bias")}
    return tensors(shapes)


HUGGINGFACE = {
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    ".attn.": ".self_attn.",
    ".ln_": ".layer_norm",
    "c_fc": "fc1",
    "c_proj": "fc2",
}


def renamed(source, table):
    result = {}
    for key, value in source.items():
        for theirs in sorted(table, key=len, reverse=True):
            if theirs in key:
                key = key.replace(theirs, table[theirs])
                if not theirs.startswith((".", "c_")):
                    continue
        result[key] = value
    return result


def huggingface(source):
    result = {}
    for key, value in renamed(source, HUGGINGFACE).items():
        if match := re.fullmatch(r"(.*)in_proj_(weight|bias)", key):
            parts = zip("qkv", np.split(value, 3), strict=True)
            result |= {f"{match[1]}{part}_proj.{match[2]}": rows for part, rows in parts}
        elif key in ("visual.proj", "text_projection"):
            result["visual_projection.weight" if key == "visual.proj" else "text_projection.weight"] = value.T
        else:
            result[key] = value
    return result


def semivl(source):
    table = {
        "visual.class_embedding": "cls_token",
        "visual.positional_embedding": "pos_embed",
        "visual.conv1": "patch_embed.projection",
        "visual.ln_pre": "ln0",
        "visual.ln_post": "ln1",
        "visual.transformer.resblocks": "layers",
        ".attn.": ".attn.attn.",
        ".ln_": ".ln",
        "mlp.c_fc": "ffn.layers.0.0",
        "mlp.c_proj": "ffn.layers.1",
    }
    result = renamed(source, table)
    result["cls_token"] = result["cls_token"][None, None]
    result["pos_embed"] = result["pos_embed"][None]
    result["proj.weight"] = result.pop("visual.proj").T[:, :, None, None]
    return result


def target():
    tower = nnx.eval_shape(lambda: ClipVit(CONFIG, rngs=nnx.Rngs(0)))
    return flatten(nnx.to_pure_dict(nnx.state(tower, nnx.Param)))


@pytest.mark.parametrize("names", [huggingface, semivl])
def test_three_spellings_give_one_tower(names):
    source = names(openai_visual())
    assert infer_config(source, **FACTS) == infer_config(openai_visual(), **FACTS) == CONFIG
    expected = convert_visual(openai_visual(), target()).values
    found = convert_visual(source, target()).values
    assert found.keys() == expected.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_query_key_and_value_are_the_packed_rows_in_order():
    source = openai_visual()
    values = convert_visual(source, target()).values
    packed = source["visual.transformer.resblocks.1.attn.in_proj_weight"]
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(values[f"layers/1/attention/{part}/kernel"], packed[8 * i : 8 * (i + 1)].T)


def test_missing_and_extra_tensors_are_all_named():
    source = openai_visual()
    source["visual.surprise"] = np.zeros(2, np.float32)
    del source["visual.ln_pre.bias"]
    with pytest.raises(WeightMismatchError, match=r"(?s)visual\.surprise.*pre_norm/bias"):
        convert_visual(source, target(), name="vit.pt")


def test_another_network_is_refused():
    with pytest.raises(InputError, match=r"vit\.pt: no CLIP vision transformer"):
        convert_visual({"conv1.weight": np.zeros(2)}, target(), name="vit.pt")


def test_a_table_of_another_image_size_is_refused():
    with pytest.raises(InputError, match="9 patches"):
        infer_config(openai_visual(), image_size=(16, 12), **FACTS)
    source = openai_visual()
    source["visual.positional_embedding"] = np.zeros((12, 8), np.float32)
    with pytest.raises(InputError, match=r"vit\.pt: the position table has 11 patches"):
        infer_config(source, name="vit.pt", **FACTS)


def test_a_whole_openai_clip_has_two_towers_and_its_architecture():
    source = openai_visual() | openai_text()
    converted = convert_clip(source, "clip.safetensors")
    assert converted.dropped == ("logit_scale",)
    config = ClipConfig.from_json(converted.metadata["config"])
    assert config.visual == infer_config(source, eps=1e-5, activation="quick_gelu")
    assert config.text.context_length == 6
    assert converted.values.keys() == {
        f"{tower}/{path}" for tower, flat in parameter_shapes(config).items() for path in flat
    }


def test_a_whole_huggingface_clip_reads_the_facts_beside_it(tmp_path):
    source = huggingface(openai_visual() | openai_text())
    source["vision_model.embeddings.position_ids"] = np.arange(10)[None]
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"config\.json"):
        convert_clip(source, str(path))
    facts = {
        "vision_config": {"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
        "text_config": {"num_attention_heads": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    converted = convert_clip(source, str(path))
    assert set(converted.dropped) == {"logit_scale", "vision_model.embeddings.position_ids"}
    config = json.loads(converted.metadata["config"])
    assert config["visual"]["activation"] == "gelu"
    assert config["visual"]["eps"] == 1e-6
    assert config["text"]["activation"] == "quick_gelu"
    assert config["text"]["num_heads"] == 2
    expected = convert_visual(openai_visual(), target()).values
    for path, value in expected.items():
        np.testing.assert_array_equal(converted.values[f"visual/{path}"], value)
    assert sum(path.startswith("text/") for path in converted.values) == 21


def test_the_command_writes_what_maskclip_loads(tmp_path):
    source, out = tmp_path / "model.safetensors", tmp_path / "clip.safetensors"
    save_file(huggingface(openai_visual() | openai_text()), source)
    facts = {"vision_config": {"num_attention_heads": 2}, "text_config": {"num_attention_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert main([str(source), str(out), "--kind=clip"]) == 0
    clip = load_clip(str(out))
    assert clip.config.visual == dataclasses.replace(CONFIG, eps=1e-5)
    np.testing.assert_array_equal(clip.visual["cls_token"], openai_visual()["visual.class_embedding"])
    assert load_weights(out)[1]["source_sha256"] == file_sha256(source)
