import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip_text import ClipText, ClipTextConfig
from semiovs_jax.ovs.text import embed_vocabulary
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.vocabulary import load_vocabulary

CONFIG = ClipTextConfig(
    vocab_size=259,
    context_length=40,
    width=16,
    num_layers=2,
    num_heads=2,
    embed_dim=8,
    tokenizer="bytes",
)


@pytest.fixture
def vocabulary(tmp_path):
    content = {
        "name": "pets",
        "source": "made for this test",
        "templates": ["a photo of a {}", "a drawing of a {}", "my {}"],
        "classes": [
            {"name": "background", "concepts": ["sky", "grass"]},
            {"name": "cat", "concepts": [["cat", "kitten"]]},
        ],
    }
    (tmp_path / "pets.json").write_text(json.dumps(content))
    return load_vocabulary(str(tmp_path / "pets.json"))


@pytest.fixture(scope="module")
def tower():
    graph, params = nnx.split(ClipText(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
    return lambda params, ids: nnx.merge(graph, params)(ids), nnx.to_pure_dict(params)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_each_concept_is_the_mean_over_templates_of_means_over_synonyms(vocabulary, tower):
    encode, params = tower
    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.context_length)
    embeddings = embed_vocabulary(encode, params, vocabulary, tokenizer, batch_size=4)
    assert embeddings.shape == (3, 8)
    assert embeddings.dtype == np.float32
    for row, concept in zip(embeddings, vocabulary.concepts, strict=True):
        by_template = []
        for prompts in vocabulary.prompts(concept):
            features = unit(np.asarray(encode(params, jnp.asarray(tokenizer.encode(prompts)))))
            by_template.append(unit(features.mean(axis=0)))
        np.testing.assert_allclose(row, unit(np.mean(by_template, axis=0)), atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_changes_nothing_and_compiles_once(vocabulary, tower, batch_size):
    encode, params = tower
    traces = []

    def counted(params, ids):
        traces.append(ids.shape)
        return encode(params, ids)

    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.context_length)
    expected = embed_vocabulary(encode, params, vocabulary, tokenizer)
    found = embed_vocabulary(counted, params, vocabulary, tokenizer, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert traces == [(min(batch_size, 12), len("a drawing of a kitten") + 2)]


def test_over_long_prompts_are_refused(vocabulary, tower):
    with pytest.raises(InputError, match="over-long prompts"):
        embed_vocabulary(*tower, vocabulary, make_tokenizer("bytes", 10))


def test_rows_do_not_depend_on_the_precision_flag(vocabulary, tower):
    encode, params = tower
    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.context_length)
    single = embed_vocabulary(encode, params, vocabulary, tokenizer)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        wide = embed_vocabulary(encode, double, vocabulary, tokenizer)
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide, single, atol=1e-6)
