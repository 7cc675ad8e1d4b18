import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from tests.golden import Golden, assert_matches, golden_path
from tests.replays.clip_text import replay

CONFIG = ClipTextConfig(vocab_size=50, context_length=12, width=24, num_layers=2, num_heads=3, embed_dim=10)
IDS = jnp.array([[48, 3, 7, 49, 0, 0, 0, 0], [48, 9, 49, 0, 0, 0, 0, 0]], jnp.int32)


@pytest.fixture(scope="module")
def tower():
    return ClipText(CONFIG, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["clip_text_base", "clip_text_large"])
def test_golden(name):
    golden = Golden(golden_path(name))
    assert_matches(golden, replay(golden, double=False))


def test_what_follows_the_end_changes_nothing(tower):
    embedding = tower(IDS)
    assert embedding.shape == (2, 10)
    np.testing.assert_allclose(tower(IDS[:, :4]), embedding, atol=1e-6)
    np.testing.assert_allclose(tower(IDS.at[:, 5:].set(11)), embedding, atol=1e-6)


def test_what_precedes_the_end_matters(tower):
    assert jnp.abs(tower(IDS.at[0, 1].set(4))[0] - tower(IDS)[0]).max() > 1e-4


def test_end_id_names_the_place_to_read(tower):
    np.testing.assert_array_equal(tower(IDS, end_id=49), tower(IDS))
    np.testing.assert_allclose(tower(IDS, end_id=7)[0], tower(IDS.at[0, 3].set(0), end_id=7)[0], atol=1e-6)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        module = ClipText(CONFIG, rngs=nnx.Rngs(0))
        graph, params = nnx.split(module)
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), nnx.to_pure_dict(params))
        assert nnx.merge(graph, wide)(IDS).dtype == jnp.float64


def test_bfloat16_is_near_and_returned_wide(tower):
    half = ClipText(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    embedding = half(IDS)
    assert embedding.dtype == jnp.float32
    np.testing.assert_allclose(embedding, tower(IDS), atol=0.05 * float(jnp.abs(tower(IDS)).max()))
