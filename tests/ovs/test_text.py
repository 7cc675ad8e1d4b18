import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.ovs.text import cached_text_embeddings, embed_prompts, embed_text, mean_over_templates
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
    apart = embed_prompts(encode, params, vocabulary, tokenizer, batch_size=4)
    embeddings = mean_over_templates(apart)
    assert embeddings.shape == (3, 8)
    assert apart.shape == (3, 3, 8)
    assert embeddings.dtype == apart.dtype == np.float32
    for row, rows, concept in zip(embeddings, apart, vocabulary.concepts, strict=True):
        by_template = []
        for prompts in vocabulary.prompts(concept):
            features = unit(np.asarray(encode(params, jnp.asarray(tokenizer.encode(prompts)))))
            by_template.append(unit(features.mean(axis=0)))
        np.testing.assert_allclose(rows, by_template, atol=2e-6)
        np.testing.assert_allclose(row, unit(np.mean(by_template, axis=0)), atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_changes_nothing_and_compiles_few_narrow_shapes(vocabulary, tower, batch_size):
    encode, params = tower
    traces = []

    def counted(params, ids):
        traces.append(ids.shape)
        return encode(params, ids)

    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.context_length)
    expected = embed_prompts(encode, params, vocabulary, tokenizer)
    found = embed_prompts(counted, params, vocabulary, tokenizer, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    longest = len("a drawing of a kitten") + 2
    assert {rows for rows, _ in traces} == {min(batch_size, 12)}
    assert {width % 4 for _, width in traces if width < longest} <= {0}
    assert max(width for _, width in traces) == longest
    assert len(traces) == {1: 4, 5: 2, 64: 1}[batch_size]


def test_equal_prompts_pass_the_tower_once(vocabulary, tower):
    encode, params = tower
    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.context_length)
    repeated = dataclasses.replace(vocabulary, concepts=vocabulary.concepts * 4)
    traces = []

    def counted(params, ids):
        traces.append(ids.shape[0])
        return encode(params, ids)

    found = embed_prompts(counted, params, repeated, tokenizer)
    assert traces == [12]
    np.testing.assert_array_equal(found, np.tile(found[:3], (4, 1, 1)))


def test_the_cache_computes_once_for_each_key(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMIOVS_CACHE", str(tmp_path))
    computed = []

    def compute():
        computed.append(np.full((2, 3), len(computed), np.float32))
        return computed[-1]

    key = {"vocabulary": "a", "weights": "b", "architecture": "c"}
    for _ in range(2):
        found = cached_text_embeddings(key, compute)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.zeros((2, 3)))
    assert len(computed) == 1
    for name in key:
        cached_text_embeddings(key | {name: "other"}, compute)
    assert len(computed) == 4
    assert len(list((tmp_path / "text_embeddings").iterdir())) == 4


def test_the_cache_knows_vocabularies_and_towers_apart(vocabulary, tower, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMIOVS_CACHE", str(tmp_path))
    encode, params = tower
    others = jax.tree.map(lambda leaf: leaf + 0.1, params)
    words = dataclasses.replace(vocabulary, templates=("one {}",))
    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.context_length)
    for _ in range(2):
        for weights, chosen in ((params, vocabulary), (others, vocabulary), (params, words)):
            expected = embed_prompts(encode, weights, chosen, tokenizer)
            np.testing.assert_allclose(embed_text(CONFIG, weights, chosen), expected, atol=1e-6)
    assert len(list((tmp_path / "text_embeddings").iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "swapped", "folder"])
def test_a_damaged_entry_is_replaced_with_a_warning(tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setenv("SEMIOVS_CACHE", str(tmp_path))
    cached_text_embeddings({"vocabulary": "a"}, lambda: np.ones((2, 3), np.float32))
    (entry,) = (tmp_path / "text_embeddings").iterdir()
    content = entry.read_bytes()
    if damage == "truncated":
        entry.write_bytes(content[:-2])
    elif damage == "flipped":
        entry.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "swapped":
        cached_text_embeddings({"vocabulary": "b"}, lambda: np.zeros((2, 3), np.float32))
        (other,) = set((tmp_path / "text_embeddings").iterdir()) - {entry}
        other.replace(entry)
    else:
        entry.unlink()
        (tmp_path / "text_embeddings").rmdir()
        (tmp_path / "text_embeddings").write_text("in the way")
    found = cached_text_embeddings({"vocabulary": "a"}, lambda: np.full((2, 3), 7, np.float32))
    np.testing.assert_array_equal(found, np.full((2, 3), 7))
    assert len(caplog.records) == 1
    if damage == "folder":
        assert "text embeddings cannot be cached" in caplog.text
    else:
        assert "are computed again" in caplog.text
        found = cached_text_embeddings({"vocabulary": "a"}, lambda: pytest.fail("not cached"))
        np.testing.assert_array_equal(found, np.full((2, 3), 7))


@pytest.mark.parametrize(
    ("variables", "folder"),
    [({"XDG_CACHE_HOME": "xdg"}, "xdg/semiovs_jax"), ({"HOME": "home"}, "home/.cache/semiovs_jax")],
)
def test_the_cache_lies_where_the_user_keeps_caches(tmp_path, monkeypatch, variables, folder):
    for name in ("SEMIOVS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    cached_text_embeddings({"vocabulary": "a"}, lambda: np.ones((2, 3), np.float32))
    assert len(list((tmp_path / folder / "text_embeddings").glob("*.safetensors"))) == 1


def test_over_long_prompts_are_refused(vocabulary, tower):
    with pytest.raises(InputError, match="over-long prompts"):
        embed_prompts(*tower, vocabulary, make_tokenizer("bytes", 10))


def test_rows_do_not_depend_on_the_precision_flag(vocabulary, tower):
    encode, params = tower
    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.context_length)
    single = embed_prompts(encode, params, vocabulary, tokenizer)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        wide = embed_prompts(encode, double, vocabulary, tokenizer)
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide, single, atol=1e-6)
