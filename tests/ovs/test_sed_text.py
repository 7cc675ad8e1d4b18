import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.clip.text import ClipText
from semiovs_jax.ovs.text import embed_by_template, embed_prompts, encode_prompts
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.vocabulary import load_vocabulary
from tests.ovs.tiny_sed import CONFIG, parts


def test_training_and_labeling_embed_the_same_words_alike():
    vocabulary = load_vocabulary("shapes")
    tokenizer = make_tokenizer("bytes", CONFIG.text.context_length)
    graph = nnx.graphdef(nnx.eval_shape(lambda: ClipText(CONFIG.text, rngs=nnx.Rngs(0))))

    def encode(params, ids):
        return nnx.merge(graph, params)(ids, end_id=tokenizer.end_id)

    params = jax.tree.map(jnp.asarray, parts()["text"])
    prompts = encode_prompts(vocabulary, tokenizer)
    found = jax.jit(lambda params: embed_by_template(lambda ids: encode(params, ids), prompts))(params)
    expected = embed_prompts(encode, params, vocabulary, tokenizer)
    assert found.shape == (len(vocabulary.concepts), len(vocabulary.templates), CONFIG.text.embed_dim)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prompts_are_cut_to_the_longest():
    vocabulary = load_vocabulary("shapes")
    tokenizer = make_tokenizer("bytes", 40)
    ids = encode_prompts(vocabulary, tokenizer).ids
    texts = [text for concept in vocabulary.concepts for per in vocabulary.prompts(concept) for text in per]
    assert ids.shape == (len(texts), max(tokenizer.count(texts)))
