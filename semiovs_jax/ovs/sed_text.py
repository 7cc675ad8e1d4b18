"""A vocabulary's text embeddings as a differentiable function of the text tower."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from semiovs_jax.models.sed.aggregator import unit
from semiovs_jax.ovs.tokenizer import Tokenizer
from semiovs_jax.ovs.vocabulary import Vocabulary


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
