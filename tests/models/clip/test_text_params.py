import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.models.clip.text_params import convert_text, infer_text_config
from semiovs_jax.weights.keys import WeightMismatchError, flatten, unflatten

CONFIG = ClipTextConfig(
    vocab_size=20, context_length=6, width=8, num_layers=2, num_heads=2, embed_dim=5, activation="gelu"
)


def openai_state_dict(prefix: str = "") -> dict[str, np.ndarray]:
    D = CONFIG.width
    shapes = {
        "token_embedding.weight": (CONFIG.vocab_size, D),
        "positional_embedding": (CONFIG.context_length, D),
        "text_projection": (D, CONFIG.embed_dim),
        "ln_final.weight": (D,),
        "ln_final.bias": (D,),
        "logit_scale": (),
    }
    for i in range(CONFIG.num_layers):
        block = f"transformer.resblocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * D, D),
            f"{block}.attn.in_proj_bias": (3 * D,),
            f"{block}.attn.out_proj.weight": (D, D),
            f"{block}.attn.out_proj.bias": (D,),
            f"{block}.mlp.c_fc.weight": (4 * D, D),
            f"{block}.mlp.c_fc.bias": (4 * D,),
            f"{block}.mlp.c_proj.weight": (D, 4 * D),
            f"{block}.mlp.c_proj.bias": (D,),
        }
        shapes |= {f"{block}.ln_{k}.{leaf}": (D,) for k in (1, 2) for leaf in ("weight", "bias")}
    rng = np.random.default_rng(0)
    return {prefix + name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def huggingface_state_dict() -> dict[str, np.ndarray]:
    """The same tower under the names of transformers' CLIPTextModelWithProjection."""
    renamed = {}
    for key, value in openai_state_dict().items():
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key):
            for part, rows in zip("qkv", np.split(value, 3), strict=True):
                renamed[f"text_model.encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = rows
            continue
        for ours, theirs in (
            ("transformer.resblocks", "text_model.encoder.layers"),
            ("attn.out", "self_attn.out"),
            ("ln_final", "text_model.final_layer_norm"),
            ("ln_", "layer_norm"),
            ("c_fc", "fc1"),
            ("c_proj", "fc2"),
            ("token_embedding", "text_model.embeddings.token_embedding"),
            ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ):
            key = key.replace(ours, theirs)
        if key == "text_projection":
            key, value = "text_projection.weight", value.T
        renamed[key] = value
    return renamed


@pytest.fixture(scope="module")
def target():
    return flatten(nnx.to_pure_dict(nnx.state(ClipText(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)))


@pytest.mark.parametrize("prefix", ["", "text.", "sem_seg_head.predictor.clip_model."])
def test_config_is_read_off_the_shapes(prefix):
    assert infer_text_config(openai_state_dict(prefix), activation="gelu", num_heads=2) == CONFIG


def test_config_of_huggingface_names():
    assert infer_text_config(huggingface_state_dict(), activation="gelu", num_heads=2) == CONFIG


def test_both_schemes_give_the_same_tower(target):
    openai = convert_text(openai_state_dict(), target)
    huggingface = convert_text(huggingface_state_dict(), target)
    assert openai.values.keys() == target.keys() == huggingface.values.keys()
    for path, value in openai.values.items():
        np.testing.assert_array_equal(value, huggingface.values[path])
    assert openai.dropped == ("logit_scale",)


def test_packed_rows_are_query_key_value(target):
    source = openai_state_dict()
    values = convert_text(source, target).values
    packed = source["transformer.resblocks.1.attn.in_proj_weight"]
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(values[f"layers/1/attention/{part}/kernel"], packed[8 * i : 8 * (i + 1)].T)
    graph, _ = nnx.split(ClipText(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
    assert nnx.merge(graph, unflatten(values))(jnp.array([[1, 19, 0]])).shape == (1, 5)


def test_the_rest_of_a_whole_model_is_dropped_by_name(target):
    source = openai_state_dict("clip_model.")
    source |= {"clip_model.visual.proj": np.zeros((3, 3)), "decoder.weight": np.zeros(2)}
    assert convert_text(source, target).dropped == (
        "clip_model.logit_scale",
        "clip_model.visual.proj",
        "decoder.weight",
    )


def test_all_mismatches_are_told_at_once(target):
    source = openai_state_dict()
    source["ln_final.weight"] = np.zeros(3, np.float32)
    source["ln_extra.weight"] = np.zeros(3, np.float32)
    del source["transformer.resblocks.0.mlp.c_fc.bias"]
    with pytest.raises(WeightMismatchError) as caught:
        convert_text(source, target, name="clip.pt")
    for part in ("clip.pt", "ln_extra.weight", "final_norm/scale", "layers/0/mlp/expand/bias"):
        assert part in str(caught.value)


def test_no_text_tower():
    with pytest.raises(InputError, match=r"resnet\.pth: no CLIP text tower"):
        infer_text_config({"conv1.weight": np.zeros((1, 1, 1, 1))}, activation="gelu", name="resnet.pth")
