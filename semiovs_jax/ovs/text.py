"""Text embeddings of a vocabulary, the classifier weights of an open-vocabulary model."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from semiovs_jax.ovs.tokenizer import Tokenizer
from semiovs_jax.ovs.vocabulary import Vocabulary


def embed_vocabulary(
    encode_text: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """Embeds every concept of `vocabulary`.

    Each prompt's embedding is L2-normalized, then averaged over the concept's synonyms and renormalized for
    each template (SED), then averaged over the templates and renormalized (CLIP's zero-shot classifier).
    Prompts pass the tower in batches of one shape, cut to the longest prompt: memory is bounded and the text
    tower compiles once.

    Args:
      encode_text: (params, int32 ids [batch_size, L]) -> [batch_size, D]; compiled here.
      params: parameters of the text tower.
      vocabulary: classes, concepts and templates.
      tokenizer: the tokenizer the tower was trained with.
      batch_size: prompts per forward.

    Returns:
      float32 [len(vocabulary.concepts), D], rows of length 1, in the order of `vocabulary.concepts`.

    Raises:
      InputError: a prompt does not fit the tokenizer's context.
    """
    vocabulary.check_prompts(tokenizer)
    prompts = [text for c in vocabulary.concepts for per_template in vocabulary.prompts(c) for text in per_template]
    ids = tokenizer.encode(prompts)
    used = int(np.flatnonzero(ids.any(axis=0))[-1]) + 1
    features = _normalize(_forward(encode_text, params, ids[:, :used], batch_size).astype(np.float64))
    embeddings, start = [], 0
    for concept in vocabulary.concepts:
        stop = start + len(vocabulary.templates) * len(concept.synonyms)
        by_template = features[start:stop].reshape(len(vocabulary.templates), len(concept.synonyms), -1)
        embeddings.append(_normalize(_normalize(by_template.mean(axis=1)).mean(axis=0)))
        start = stop
    return np.stack(embeddings).astype(np.float32)


def _forward(
    encode_text: Callable[[Any, jax.Array], jax.Array], params: Any, ids: np.ndarray, batch_size: int
) -> np.ndarray:
    """Features [N, D] of ids [N, L], in batches of one shape (the last one repeats its first row)."""
    encode = jax.jit(encode_text)
    batch_size = min(batch_size, len(ids))
    features = []
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        padding = np.repeat(batch[:1], batch_size - len(batch), axis=0)
        features.append(np.asarray(encode(params, np.concatenate([batch, padding])))[: len(batch)])
    return np.concatenate(features)


def _normalize(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
