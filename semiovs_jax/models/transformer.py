"""The pre-norm transformer block of CLIP's image and text towers.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.attention import attend
from semiovs_jax.models.precision import full_precision


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's approximation of GELU, x * sigmoid(1.702 x); same shape and dtype as `x`."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as torch's; same shape and dtype as `x`. 16-bit floats are rounded once.

    `jax.nn.gelu` has the complementary error function, which takes XLA several times as many operations.
    """
    y = full_precision(x)
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {"gelu": exact_gelu, "quick_gelu": quick_gelu, "relu": jax.nn.relu}
)


def layer_norm(width: int, *, eps: float, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, with the two-pass variance torch uses (the one-pass form is less precise)."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention; the softmax is float32 or wider, whatever `dtype`.

    Args:
      width: channels of a token.
      num_heads: heads; divides `width`.
    """

    def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Maps tokens [N, T, D] to tokens [N, T, D].

        Args:
          x: tokens.
          mask: bool [T, T], True where a query attends to a key. None: everywhere.
        """
        N, T, D = x.shape
        channels = D // self.num_heads
        query, key, value = (
            part(x).reshape(N, T, self.num_heads, channels) for part in (self.query, self.key, self.value)
        )
        return self.out(attend(query, key, value, mask).reshape(N, T, D))

    def value_path(self, x: jax.Array) -> jax.Array:
        """Attention of each token to itself alone: out(value(x)), [N, T, D] to [N, T, D]."""
        return self.out(self.value(x))


class Mlp(nnx.Module):
    """Two linear layers with an activation between them.

    Args:
      width: input and output channels.
      hidden: channels of the hidden layer.
      activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, width: int, hidden: int, *, activation: str, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.activation = activation
        self.expand = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.contract = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [..., D] to tokens [..., D]."""
        return self.contract(ACTIVATIONS[self.activation](self.expand(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
      width: channels of a token.
      num_heads: attention heads.
      mlp_width: hidden channels of the MLP.
      eps: LayerNorm's epsilon.
      activation: a key of `ACTIVATIONS`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        *,
        eps: float,
        activation: str,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, mlp_width, activation=activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Maps tokens [N, T, D] to tokens [N, T, D]; `mask` as in `Attention`."""
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.mlp(self.norm2(x))

    def value_path(self, x: jax.Array) -> jax.Array:
        """The block with its attention replaced by the value path (MaskCLIP): no token attends to another."""
        x = x + self.attention.value_path(self.norm1(x))
        return x + self.mlp(self.norm2(x))
