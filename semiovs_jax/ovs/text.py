"""Text embeddings of a vocabulary, the classifier weights of an open-vocabulary model."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.models.sed.aggregator import unit
from semiovs_jax.ovs.tokenizer import Tokenizer, make_tokenizer
from semiovs_jax.ovs.vocabulary import Vocabulary
from semiovs_jax.weights.files import load_weights, save_weights, tensors_sha256
from semiovs_jax.weights.keys import flatten

_COLUMNS = 4  # batches are as wide as a multiple of this: few shapes to compile, little padding to compute
_MANY_BATCHES = 8  # from here on a progress bar

_log = logging.getLogger(__name__)


def embed_prompts(
    encode_text: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """Embeds every concept of `vocabulary` in every template (SED, `sed_predictor.py`).

    Each prompt's embedding is L2-normalized, then averaged over the concept's synonyms and renormalized.
    Templates are never averaged. Equal prompts pass the tower once, in batches of few shapes.

    Args:
      encode_text: (params, int32 ids [batch_size, L]) -> [batch_size, D], where columns after a text's end
        change nothing; compiled here, at full matmul precision.
      params: parameters of the text tower.
      vocabulary: classes, concepts and templates.
      tokenizer: the tokenizer the tower was trained with.
      batch_size: prompts per forward.

    Returns:
      float32 [C, P, D] for C concepts and P templates, in the orders of `vocabulary`, vectors of length 1.

    Raises:
      InputError: a prompt does not fit the tokenizer's context.
    """
    vocabulary.check_prompts(tokenizer)
    prompts = [text for c in vocabulary.concepts for per_template in vocabulary.prompts(c) for text in per_template]
    ids, place = np.unique(tokenizer.encode(prompts), axis=0, return_inverse=True)
    features = _normalize(_forward(encode_text, params, ids, batch_size).astype(np.float64))[place.reshape(-1)]
    embeddings, start = [], 0
    for concept in vocabulary.concepts:
        stop = start + len(vocabulary.templates) * len(concept.synonyms)
        by_synonym = features[start:stop].reshape(len(vocabulary.templates), len(concept.synonyms), -1)
        embeddings.append(_normalize(by_synonym.mean(axis=1)))
        start = stop
    return np.stack(embeddings).astype(np.float32)


def mean_over_templates(embeddings: np.ndarray) -> np.ndarray:
    """CLIP's zero-shot classifier: unit embeddings [C, P, D] of concepts in templates to one each, float32 [C, D]."""
    return _normalize(embeddings.astype(np.float64).mean(axis=1)).astype(np.float32)


def embed_text(config: ClipTextConfig, params: Any, vocabulary: Vocabulary) -> np.ndarray:
    """`embed_prompts` with a CLIP text tower and its tokenizer, or what the cache holds of it.

    Args:
      config: architecture of the tower, its tokenizer among it.
      params: pure dict of the parameters of `ClipText(config)`.
      vocabulary: classes, concepts and templates.

    Returns:
      float32 [C, P, D], as `embed_prompts`.

    Raises:
      InputError: a prompt does not fit the tower's context.
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: ClipText(config, rngs=nnx.Rngs(0))))
    tokenizer = make_tokenizer(config.tokenizer, config.context_length)

    def encode(params: Any, ids: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(ids, end_id=tokenizer.end_id)

    key = {
        "vocabulary": vocabulary.sha256,
        "weights": tensors_sha256(flatten(params)),
        "architecture": json.dumps(dataclasses.asdict(config), sort_keys=True),
    }
    return cached_text_embeddings(key, lambda: embed_prompts(encode, params, vocabulary, tokenizer))


def cached_text_embeddings(key: Mapping[str, str], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Text embeddings from the user's cache, computed and put there where they are missing.

    The cache is `text_embeddings/` below `$SEMIOVS_CACHE`, or else `$XDG_CACHE_HOME/semiovs_jax`, or else
    `~/.cache/semiovs_jax`. A damaged entry or an unwritable folder is a logged warning, never a failure.

    Args:
      key: all that decides the embeddings: `Vocabulary.sha256`, and the digest and the architecture of the text
        tower.
      compute: makes the embeddings.

    Returns:
      What `compute` returned, now or earlier.
    """
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    try:
        path = _cache_folder() / "text_embeddings" / f"{digest}.safetensors"
        if path.is_file():
            arrays, metadata = load_weights(path)
            if "embeddings" in arrays and metadata.items() >= key.items():
                return arrays["embeddings"]
            raise InputError(f"{path}: not the embeddings its name says")
    except (InputError, OSError, RuntimeError) as error:
        _log.warning("cached text embeddings cannot be used, they are computed again: %s", error)
    embeddings = compute()
    try:
        path = _cache_folder() / "text_embeddings" / f"{digest}.safetensors"
        save_weights(path, {"embeddings": embeddings}, key)
    except (InputError, RuntimeError) as error:
        _log.warning("text embeddings cannot be cached: %s; set SEMIOVS_CACHE to a folder you may write to", error)
    return embeddings


def _cache_folder() -> Path:
    """The user's cache; raises RuntimeError if the user has no home."""
    if folder := os.environ.get("SEMIOVS_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "semiovs_jax"


def _forward(
    encode_text: Callable[[Any, jax.Array], jax.Array], params: Any, ids: np.ndarray, batch_size: int
) -> np.ndarray:
    """Features [N, D] of ids [N, L]: short texts first, each batch as wide as its longest text needs."""
    encode = jax.jit(encode_text)
    lengths = ids.shape[1] - np.argmax(ids[:, ::-1] != 0, axis=1)
    order = np.argsort(lengths, kind="stable")
    batch_size = min(batch_size, len(ids))
    starts = range(0, len(ids), batch_size)
    features = []
    # Full precision, because embeddings are cached for every device.
    with (
        jax.default_matmul_precision("highest"),
        tqdm(total=len(ids), desc="text embeddings", unit="prompt", disable=len(starts) < _MANY_BATCHES) as progress,
    ):
        for start in starts:
            rows = order[start : start + batch_size]
            width = min(-(-lengths[rows[-1]] // _COLUMNS) * _COLUMNS, lengths.max())
            batch = ids[np.resize(rows, batch_size), :width]  # the last batch repeats rows
            features.append(np.asarray(encode(params, batch))[: len(rows)])
            progress.update(len(rows))
    return np.concatenate(features)[np.argsort(order)]


def _normalize(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Prompts(NamedTuple):
    """Every prompt of a vocabulary.

    Attributes:
      ids: int32 [M, L], cut to the longest.
      place: int32 [M], number of the prompt's (concept, template), concept-major; one for all synonyms.
      shape: numbers of concepts and of templates.
    """

    ids: np.ndarray
    place: np.ndarray
    shape: tuple[int, int]


def encode_prompts(vocabulary: Vocabulary, tokenizer: Tokenizer) -> Prompts:
    """Tokens of every concept in every template and synonym.

    Raises:
      InputError: a prompt does not fit the tokenizer's context.
    """
    vocabulary.check_prompts(tokenizer)
    groups = [texts for concept in vocabulary.concepts for texts in vocabulary.prompts(concept)]
    ids = tokenizer.encode([text for texts in groups for text in texts])
    place = np.repeat(np.arange(len(groups), dtype=np.int32), [len(texts) for texts in groups])
    longest = int(np.flatnonzero(ids.any(axis=0))[-1]) + 1
    return Prompts(ids[:, :longest], place, (len(vocabulary.concepts), len(vocabulary.templates)))


def embed_by_template(encode_text: Callable[[jax.Array], jax.Array], prompts: Prompts) -> jax.Array:
    """What `text.embed_prompts` computes, traceable: unit embeddings averaged over synonyms, made unit again.

    Args:
      encode_text: ids [M, L] to embeddings [M, D].
      prompts: of the vocabulary.

    Returns:
      float [T, P, D] for T concepts and P templates.
    """
    concepts, templates = prompts.shape
    summed = jax.ops.segment_sum(unit(encode_text(jnp.asarray(prompts.ids))), prompts.place, concepts * templates)
    return unit(summed).reshape(concepts, templates, -1)
