"""CLIP's text tower: a causal pre-norm transformer; a text's embedding is its output at the end-of-text token.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021;
open_clip's text tower, which SED uses.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.transformer import Block, layer_norm


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Architecture of a CLIP text tower; the defaults are those of OpenAI's ViT-B/16.

    Attributes:
      vocab_size: rows of the token embedding.
      context_length: rows of the position table, the longest text in tokens.
      width: channels of a token.
      num_layers: transformer blocks.
      num_heads: attention heads of a block.
      embed_dim: channels of the space shared with the image tower.
      activation: "quick_gelu" (OpenAI) or "gelu" (exact; open_clip's ConvNeXt models).
      tokenizer: name of the tokenizer, see `ovs.tokenizer.make_tokenizer`.
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    num_layers: int = 12
    num_heads: int = 8
    embed_dim: int = 512
    activation: str = "quick_gelu"
    tokenizer: str = "clip_bpe"


class ClipText(nnx.Module):
    """CLIP text tower. A `dtype` of None is that of the parameters here.

    Args:
      config: the architecture.
    """

    def __init__(self, config: ClipTextConfig, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        self.token_embed = nnx.Embed(
            config.vocab_size, width, embedding_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs
        )
        self.pos_embed = nnx.Param(nnx.initializers.normal(0.01)(rngs.params(), (config.context_length, width)))
        self.layers = nnx.List(
            Block(
                width,
                config.num_heads,
                4 * width,
                eps=1e-5,
                activation=config.activation,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(width, config.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, ids: jax.Array, *, end_id: int | None = None) -> jax.Array:
        """Embeds texts.

        Args:
          ids: int32 [N, L] with L <= context_length. Attention is causal: columns after the last end-of-text token do
            not change the result, and may be cut to save time.
          end_id: id of the end-of-text token, of which the first in a row counts; None: the largest id of each row.

        Returns:
          Embeddings [N, embed_dim], float32 or wider, not normalized.
        """
        x = self.token_embed(ids)
        x = x + self.pos_embed[: ids.shape[1]].astype(x.dtype)
        causal = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool))
        for layer in self.layers:
            x = layer(x, mask=causal)
        end = jnp.argmax(ids if end_id is None else ids == end_id, axis=1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        embedding = self.projection(self.final_norm(x))
        return embedding.astype(jnp.promote_types(embedding.dtype, jnp.float32))
