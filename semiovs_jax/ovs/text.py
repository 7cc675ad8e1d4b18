"""Text embeddings of a vocabulary: the classifier weights of an open-vocabulary model."""

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

_COLUMNS = 4  # the width of a batch is a multiple of this: few shapes to compile, little padding to compute
_MANY_BATCHES = 8  # that many or more get a progress bar

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

    The embedding of each prompt is L2-normalized, averaged over the concept's synonyms, and normalized again.
    Templates are not averaged. Equal prompts are encoded once.

    Args:
      encode_text: (params, int32 ids [batch_size, L]) -> [batch_size, D]. Columns after the end of a text must not
        change its result. Compiled here, at full matmul precision.
      params: parameters of the text tower.
      vocabulary: classes, concepts and templates.
      tokenizer: the tokenizer that the tower was trained with.
      batch_size: number of prompts per forward pass.

    Returns:
      Unit vectors, float32 [C, P, D] for C concepts and P templates, in the order of `vocabulary`.

    Raises:
      InputError: a prompt is too long for the tokenizer's context.
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
    """CLIP's zero-shot classifier, float32 [C, D]: the normalized mean over templates of unit embeddings [C, P, D]."""
    return _normalize(embeddings.astype(np.float64).mean(axis=1)).astype(np.float32)


def embed_text(config: ClipTextConfig, params: Any, vocabulary: Vocabulary) -> np.ndarray:
    """Embeds a vocabulary with a CLIP text tower, or reads the embeddings from the cache.

    Args:
      config: architecture of the tower, and the name of its tokenizer.
      params: parameters of `ClipText(config)`, a pure dict.
      vocabulary: classes, concepts and templates.

    Returns:
      float32 [C, P, D], as `embed_prompts`.

    Raises:
      InputError: a prompt is too long for the tower's context.
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
    """Reads text embeddings from the user's cache. If they are missing, computes and caches them.

    The cache is `text_embeddings/` below the first of `$SEMIOVS_CACHE`, `$XDG_CACHE_HOME/semiovs_jax` and
    `~/.cache/semiovs_jax` that is set. A damaged entry or an unwritable folder causes a logged warning, not an error.

    Args:
      key: everything that decides the embeddings: `Vocabulary.sha256`, and digest and architecture of the text tower.
      compute: computes the embeddings.

    Returns:
      The result of `compute`, from this call or from an earlier one.
    """
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    try:
        path = _cache_folder() / "text_embeddings" / f"{digest}.safetensors"
        if path.is_file():
            arrays, metadata = load_weights(path)
            if "embeddings" in arrays and metadata.items() >= key.items():
                return arrays["embeddings"]
            raise InputError(f"{path}: the embeddings in it belong to another vocabulary or tower")
    except (InputError, OSError, RuntimeError) as error:
        _log.warning("cached text embeddings are not usable and are computed again: %s", error)
    embeddings = compute()
    try:
        path = _cache_folder() / "text_embeddings" / f"{digest}.safetensors"
        save_weights(path, {"embeddings": embeddings}, key)
    except (InputError, RuntimeError) as error:
        _log.warning("text embeddings cannot be cached: %s; set SEMIOVS_CACHE to a writable folder", error)
    return embeddings


def _cache_folder() -> Path:
    """The user's cache folder; raises RuntimeError if the user has no home folder."""
    if folder := os.environ.get("SEMIOVS_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "semiovs_jax"


def _forward(
    encode_text: Callable[[Any, jax.Array], jax.Array], params: Any, ids: np.ndarray, batch_size: int
) -> np.ndarray:
    """Features [N, D] of ids [N, L]. Short texts come first; the width of a batch is that of its longest text."""
    encode = jax.jit(encode_text)
    lengths = ids.shape[1] - np.argmax(ids[:, ::-1] != 0, axis=1)
    order = np.argsort(lengths, kind="stable")
    batch_size = min(batch_size, len(ids))
    starts = range(0, len(ids), batch_size)
    features = []
    # Full precision, because all devices share the cached embeddings.
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
    """Token ids of all prompts of a vocabulary.

    Attributes:
      ids: int32 [M, L], where L is the length of the longest prompt.
      place: int32 [M], concept * (number of templates) + template; synonyms share it.
      shape: (number of concepts, number of templates).
    """

    ids: np.ndarray
    place: np.ndarray
    shape: tuple[int, int]


def encode_prompts(vocabulary: Vocabulary, tokenizer: Tokenizer) -> Prompts:
    """Encodes all synonyms of every concept in every template.

    Raises:
      InputError: a prompt is too long for the tokenizer's context.
    """
    vocabulary.check_prompts(tokenizer)
    groups = [texts for concept in vocabulary.concepts for texts in vocabulary.prompts(concept)]
    ids = tokenizer.encode([text for texts in groups for text in texts])
    place = np.repeat(np.arange(len(groups), dtype=np.int32), [len(texts) for texts in groups])
    longest = int(np.flatnonzero(ids.any(axis=0))[-1]) + 1
    return Prompts(ids[:, :longest], place, (len(vocabulary.concepts), len(vocabulary.templates)))


def embed_by_template(encode_text: Callable[[jax.Array], jax.Array], prompts: Prompts) -> jax.Array:
    """Computes the same as `embed_prompts` inside a traced function, for training.

    Args:
      encode_text: from ids [M, L] to embeddings [M, D].
      prompts: token ids of the vocabulary.

    Returns:
      float [T, P, D] for T concepts and P templates.
    """
    concepts, templates = prompts.shape
    summed = jax.ops.segment_sum(unit(encode_text(jnp.asarray(prompts.ids))), prompts.place, concepts * templates)
    return unit(summed).reshape(concepts, templates, -1)
