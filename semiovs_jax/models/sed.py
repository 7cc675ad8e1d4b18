"""SED's aggregator: from the correlation of image and words to one mask per class.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024, and its code's
`model.py` in the ConvNeXt variant ("V1", linear attention), as SemiOVS runs it.

Arrays that hold a plane per class are [N, T, h, w, C]. Only the class attention looks across classes, and only
through sums over them, so that everything runs on a few classes at a time.

What is computed differs from the published code in three ways that change nothing but rounding:
- guidance is the same for all classes: its share of a convolution is computed once per image and added;
- a transposed convolution followed by a convolution, with nothing between, is one convolution (`CornerConv`);
- the correlation is computed as planes of classes, the layout the convolutions read.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.convnext import ConvNextBlock
from semiovs_jax.models.layers import full_precision, resize_bilinear
from semiovs_jax.models.transformer import Mlp, layer_norm

_CHANNELS_PER_GROUP = 16  # of group normalization
_ATTENTION_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class SedConfig:
    """Architecture of an aggregator; the defaults are those of `convnextB_768.yaml`.

    Attributes:
      num_templates: prompt templates, the channels of the correlation.
      width: channels of the embedded correlation.
      decoder_widths: channels after each decoder.
      level_widths: channels of the image tower's levels that guide the decoders, the coarsest first.
      guidance_widths: channels of each decoder's guidance, by the image and by the correlation alike.
      num_heads: heads of the class attention.
      kernel_sizes: sides of the decoders' depthwise filters.
    """

    num_templates: int = 80
    width: int = 128
    decoder_widths: tuple[int, ...] = (64, 32, 16)
    level_widths: tuple[int, ...] = (512, 256, 128)
    guidance_widths: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 4
    kernel_sizes: tuple[int, ...] = (9, 9, 9)

    def __post_init__(self) -> None:
        for name in ("decoder_widths", "level_widths", "guidance_widths", "kernel_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists only


class SedLogits(NamedTuple):
    """What the heads say of h x w embeddings, float32 or wider.

    Attributes:
      mask: [N, T, 8 h, 8 w], the sigmoid of which is the probability of a class at a pixel.
      auxiliary: [N, T, s h, s w] for s = 1, 2, 4: the decoders' inputs read by heads of their own, no gradient
        flowing into what they read.
    """

    mask: jax.Array
    auxiliary: tuple[jax.Array, ...]


def unit(x: jax.Array) -> jax.Array:
    """Divides by the length along the last axis; float32 or wider."""
    x = full_precision(x)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def correlate(dense: jax.Array, text: jax.Array) -> jax.Array:
    """Cosines of pixels and prompts, as planes of classes.

    Args:
      dense: float [N, h, w, D], embeddings of the pixels, of any length.
      text: float [T, P, D], unit embeddings of T classes in P templates.

    Returns:
      float [N, T, h, w, P], float32 or wider.
    """
    return jnp.einsum("nhwd,tpd->nthwp", unit(dense), text, precision=jax.lax.Precision.HIGHEST)


def _conv(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    sides = ((padding, padding), (padding, padding))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _interleave_phases(x: jax.Array) -> jax.Array:
    """[N, h, w, 4 C], two rows by two columns of pixels at each place, to [N, 2 h, 2 w, C]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


def _fold(x: jax.Array) -> jax.Array:
    """[N, T, ...] to [N * T, ...]."""
    return x.reshape(-1, *x.shape[2:])


class ConvTranspose2x2(nnx.Module):
    """Transposed convolution, 2x2 of stride 2: every pixel becomes four.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      dtype: compute dtype, None for that of the input.
      rngs: initializes the parameters.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, h, w, in] to [N, 2 h, 2 w, out]."""
        dtype = self.dtype or x.dtype
        kernel = self.kernel.astype(dtype).transpose(2, 0, 1, 3).reshape(x.shape[-1], -1)
        return _interleave_phases(x.astype(dtype) @ kernel) + self.bias.astype(dtype)


# [r, s, a, d] is 1 where tap d of a 3x3 convolution at phase a of a corner (the last pixel before it or the first
# behind it) reads phase s of the coarse pixel r (before or behind the corner): d = 2 r + s - a.
_CORNER = np.array([[[[2 * r + s - a == d for d in range(3)] for a in range(2)] for s in range(2)] for r in range(2)])


class CornerConv(NamedTuple):
    """A 2x2 transposed convolution of stride 2 and a 3x3 convolution upon it, as one convolution.

    The 2x2 fine pixels around a corner of coarse pixels see only the 2x2 coarse pixels around it. So a 2x2
    convolution that runs over corners gives them all, with half of the multiplications and without the fine
    planes in between. Zero padding is the same for both; the transposed convolution's bias, which the padding
    lacks, is a plane of its own.

    Attributes:
      kernel: float [2, 2, in, 4 out].
      bias: float [1, 2 h, 2 w, out].
    """

    kernel: jax.Array
    bias: jax.Array

    @classmethod
    def compose(cls, up: ConvTranspose2x2, kernel: jax.Array, shape: tuple[int, int]) -> "CornerConv":
        """The composition of `up` and the convolution with `kernel` [3, 3, C, out] for coarse planes of `shape`."""
        corner = jnp.asarray(_CORNER, kernel.dtype)
        composed = jnp.einsum(
            "stcu,deuo,rsad,qtbe->rqcabo",
            up.kernel[...],
            kernel,
            corner,
            corner,
            precision=jax.lax.Precision.HIGHEST,
            optimize="optimal",
        )
        plane = jnp.broadcast_to(up.bias[...], (1, 2 * shape[0], 2 * shape[1], up.bias.shape[0]))
        return cls(composed.reshape(*composed.shape[:3], -1), _conv(plane.astype(kernel.dtype), kernel, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, h, w, in] to [N, 2 h, 2 w, out], the bias plane left to the caller."""
        return _interleave_phases(_conv(x, self.kernel.astype(x.dtype), 1))[:, 1:-1, 1:-1]


class ClassAttention(nnx.Module):
    """Linear attention among the classes of each pixel, and an MLP; no position, no output projection.

    Args:
      width: channels.
      num_heads: heads.
      dtype: compute dtype, None for that of the input.
      rngs: initializes the parameters.
    """

    def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.norm1 = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, activation="relu", dtype=dtype, rngs=rngs)

    def summarize(self, x: jax.Array, alive: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What classes say to all classes, to be added up over all of them.

        Args:
          x: float [N, T, h, w, C].
          alive: bool [N, T], the classes that are heard.

        Returns:
          Sums over classes of keys times values [N, h, w, heads, c, c] and of keys [N, h, w, heads, c].
        """
        y = self.norm1(x)
        keys = jnp.where(alive[:, :, None, None, None], jax.nn.elu(self.key(y)) + 1, 0)
        keys, values = (full_precision(self._split(part)) for part in (keys, self.value(y)))
        return jnp.einsum("nthwac,nthwad->nhwacd", keys, values), keys.sum(1)

    def __call__(self, x: jax.Array, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        """What classes [N, T, h, w, C] become, given `summarize` summed over all classes."""
        query = full_precision(self._split(jax.nn.elu(self.query(self.norm1(x))) + 1))
        memory, keys = sums
        heard = jnp.einsum("nthwac,nhwacd->nthwad", query, memory)
        heard = heard / (jnp.einsum("nthwac,nhwac->nthwa", query, keys)[..., None] + _ATTENTION_EPS)
        x = x + heard.reshape(x.shape).astype(x.dtype)
        return x + self.mlp(self.norm2(x))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


class SedDecoder(nnx.Module):
    """One decoder: spatial mixing, class attention, then planes twice as fine under guidance.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      guidance_channels: channels of the guidance by the image, and of that by the correlation.
      kernel_size: side of the depthwise filters.
      num_heads: heads of the class attention.
      dtype: compute dtype, None for that of the input.
      rngs: initializes the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        guidance_channels: int,
        *,
        kernel_size: int,
        num_heads: int,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        kept = in_channels - guidance_channels
        init = nnx.initializers.he_normal()
        self.block = ConvNextBlock(in_channels, kernel_size=kernel_size, dtype=dtype, rngs=rngs)
        self.attention = ClassAttention(in_channels, num_heads, dtype=dtype, rngs=rngs)
        self.up = ConvTranspose2x2(in_channels, kept, dtype=dtype, rngs=rngs)
        self.conv1 = nnx.Param(init(rngs.params(), (3, 3, kept + 2 * guidance_channels, out_channels)))
        self.conv2 = nnx.Param(init(rngs.params(), (3, 3, out_channels, out_channels)))
        self.norm1, self.norm2 = (
            nnx.GroupNorm(
                out_channels,
                num_groups=max(1, out_channels // _CHANNELS_PER_GROUP),
                epsilon=1e-5,
                use_fast_variance=False,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(2)
        )

    def upsampler(self, guidance: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The second half of the decoder, what all classes share computed beforehand.

        Args:
          guidance: float [N, 2 h, 2 w, G], by the image.

        Returns:
          A function of planes [N, T, h, w, C] and their guidance by the correlation [N, T, 2 h, 2 w, G] to
          [N, T, 2 h, 2 w, out].
        """
        _, height, width, channels = guidance.shape
        dtype = guidance.dtype
        kept = self.up.bias.shape[0]
        own, by_image, by_correlation = jnp.split(self.conv1[...], (kept, kept + channels), axis=2)
        corner = CornerConv.compose(self.up, own, (height // 2, width // 2))
        shared = _conv(guidance, by_image.astype(dtype), 1) + corner.bias.astype(dtype)

        def upsample(x: jax.Array, correlation_guidance: jax.Array) -> jax.Array:
            n, t = x.shape[:2]
            y = corner(_fold(x)) + _conv(_fold(correlation_guidance), by_correlation.astype(x.dtype), 1)
            y = y.reshape(n, t, *y.shape[1:]) + shared[:, None]
            y = jax.nn.relu(self.norm1(_fold(y)))
            y = jax.nn.relu(self.norm2(_conv(y, self.conv2.astype(y.dtype), 1)))
            return y.reshape(n, t, *y.shape[1:])

        return upsample


class _Planes(NamedTuple):
    """What goes from decoder to decoder, a place for each class in the second axis.

    Attributes:
      features: float [N, T, h, w, C].
      correlation: float [N, T, h, w, C'], the correlation, then its guidance of one decoder after the other.
      logits: float [N, T, h, w], what the head says that reads `features`.
    """

    features: jax.Array
    correlation: jax.Array
    logits: jax.Array


class _Alive(NamedTuple):
    """Which class lies where: those in use in front.

    Attributes:
      classes: int32 [N, T], the class of each place.
      used: int32 [N], how many are.
    """

    classes: jax.Array
    used: jax.Array

    @property
    def mask(self) -> jax.Array:
        """Whether a place is in use, bool [N, T]."""
        return jnp.arange(self.classes.shape[1]) < self.used[:, None]


class SedAggregator(nnx.Module):
    """The aggregator with its four heads.

    Args:
      config: the architecture.
      dtype: compute dtype, None for that of the parameters. The correlation, the attention's sums and the logits
        are float32 or wider.
      rngs: initializes the parameters.
    """

    def __init__(self, config: SedConfig, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        def conv(before: int, after: int, size: int) -> nnx.Conv:
            return nnx.Conv(before, after, (size, size), dtype=dtype, rngs=rngs)

        self.config = config
        widths = (config.width, *config.decoder_widths)
        links = (config.num_templates, *config.guidance_widths)
        self.embed = conv(config.num_templates, config.width, 7)
        self.image_guidance = nnx.List(
            conv(level, guidance, 3)
            for level, guidance in zip(config.level_widths, config.guidance_widths, strict=True)
        )
        self.correlation_guidance = nnx.List(
            ConvTranspose2x2(before, after, dtype=dtype, rngs=rngs) for before, after in itertools.pairwise(links)
        )
        self.decoders = nnx.List(
            SedDecoder(
                before,
                after,
                guidance,
                kernel_size=kernel_size,
                num_heads=config.num_heads,
                dtype=dtype,
                rngs=rngs,
            )
            for before, after, guidance, kernel_size in zip(
                widths[:-1], widths[1:], config.guidance_widths, config.kernel_sizes, strict=True
            )
        )
        self.heads = nnx.List(conv(width, 1, 3) for width in widths)

    def __call__(
        self,
        dense: jax.Array,
        text: jax.Array,
        levels: tuple[jax.Array, ...],
        *,
        pooling: int = 1,
        class_chunk: int = 0,
        top_k: int = 0,
    ) -> SedLogits:
        """Logits of every class.

        Args:
          dense: float [N, h, w, D], the image tower's embeddings.
          text: float [T, P, D], unit text embeddings.
          levels: the image tower's levels that guide the decoders, [N, s h, s w, C] for s = 2, 4, 8.
          pooling: side of the average pooling before the class attention: 1 in inference, 2 in training.
          class_chunk: classes that are computed at a time, which bounds memory; 0 for all at once.
          top_k: before each decoder, drop the classes that are among the `top_k` best of no pixel by the head
            there, as the reference's fast inference does for each image; 0 keeps all. The logits of dropped
            classes are -inf. Not differentiable.
        """
        num_classes = text.shape[0]
        chunks = -(-num_classes // class_chunk) if class_chunk else 1
        size = -(-num_classes // chunks)
        text = jnp.pad(text, ((0, size * chunks - num_classes), (0, 0), (0, 0)))
        alive = _Alive(
            jnp.broadcast_to(jnp.arange(len(text)), (len(dense), len(text))), jnp.full(len(dense), num_classes)
        )

        planes = self._embed(correlate(dense, text), size)
        found = [planes.logits]
        for stage, level in enumerate(levels):
            used: int | jax.Array = chunks
            if top_k:
                planes, alive = _prune(planes, alive, top_k)
                used = -(-jnp.max(alive.used) // size)
            planes = self._decode(stage, planes, level, alive.mask, size, used, pooling)
            found.append(planes.logits)
        if top_k:
            return SedLogits(_in_class_order(found[-1], alive)[:, :num_classes], ())
        mask, *auxiliary = (logits[:, :num_classes] for logits in reversed(found))
        return SedLogits(mask, tuple(reversed(auxiliary)))

    def _embed(self, correlation: jax.Array, size: int) -> _Planes:
        """The first decoder's input."""

        def embed(correlation: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[()]]:
            features = self._per_class(self.embed, correlation)
            return (features, self._read(0, features)), ()

        (features, logits), _ = _by_chunks(embed, correlation, size, correlation.shape[1] // size)
        return _Planes(features, correlation, logits)

    def _decode(
        self,
        stage: int,
        planes: _Planes,
        level: jax.Array,
        alive: jax.Array,
        size: int,
        chunks: int | jax.Array,
        pooling: int,
    ) -> _Planes:
        """Runs one decoder on the first `chunks` chunks of `size` places; what the others hold means nothing."""
        decoder, link = self.decoders[stage], self.correlation_guidance[stage]
        last = stage == len(self.decoders) - 1
        guidance = jax.nn.relu(self.image_guidance[stage](level))
        upsample = decoder.upsampler(guidance)

        def mix(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            features, alive = chunk
            features = self._per_class(decoder.block, features)
            return features, decoder.attention.summarize(_pool(features, pooling), alive)

        mixed, sums = _by_chunks(mix, (planes.features, alive), size, chunks, into=planes.features)

        def refine(chunk: tuple[jax.Array, jax.Array]) -> tuple[_Planes, tuple[()]]:
            features, correlation = chunk
            attended = decoder.attention(_pool(features, pooling), sums)
            features = features + _unpool(attended, features.shape[2:4])
            correlation = jax.nn.relu(self._per_class(link, correlation))
            features = upsample(features, correlation)
            logits = self._read(stage + 1, features)
            nothing = jnp.zeros((*features.shape[:2], 0), features.dtype)
            return (_Planes(nothing, nothing, logits) if last else _Planes(features, correlation, logits)), ()

        refined, _ = _by_chunks(refine, (mixed, planes.correlation), size, chunks)
        return refined

    def _read(self, stage: int, features: jax.Array) -> jax.Array:
        """Logits [N, T, h, w] of the head before (or, the last one, behind) a decoder."""
        last = stage == len(self.heads) - 1
        features = features if last else jax.lax.stop_gradient(features)
        return full_precision(self._per_class(self.heads[stage], features)[..., 0])

    @staticmethod
    def _per_class(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        y = layer(_fold(x))
        return y.reshape(*x.shape[:2], *y.shape[1:])


def _pool(x: jax.Array, size: int) -> jax.Array:
    """Means of `size` x `size` pixels of x [N, T, h, w, C]; what is left over at the end is dropped, as in torch."""
    if size == 1:
        return x
    n, t, h, w, c = x.shape
    h, w = h // size, w // size
    return x[:, :, : h * size, : w * size].reshape(n, t, h, size, w, size, c).mean((3, 5))


def _unpool(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Planes [N, T, h, w, C] resized to `shape`, corners aligned."""
    if x.shape[2:4] == shape:
        return x
    return resize_bilinear(_fold(x), (shape[0], shape[1]), align_corners=True).reshape(*x.shape[:2], *shape, -1)


def _by_chunks(
    function: Callable[[Any], tuple[Any, Any]], inputs: Any, size: int, chunks: int | jax.Array, into: Any = None
) -> tuple[Any, Any]:
    """Calls `function` on `size` places at a time.

    Args:
      function: from arrays [N, size, ...] to outputs [N, size, ...] and to sums over the places.
      inputs: arrays [N, T, ...], T a multiple of `size`.
      size: places of a call.
      chunks: how many calls; if traced, not differentiable in reverse.
      into: arrays [N, T, ...] that the outputs overwrite; zeros if None.

    Returns:
      The outputs of all places [N, T, ...] (those of `into` where there was no call), and the sums added up.
    """
    total = jax.tree.leaves(inputs)[0].shape[1]
    if size == total:
        return function(inputs)

    def chunk(i: int | jax.Array) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1), inputs)

    outputs, sums = jax.eval_shape(function, chunk(0))
    if into is None:
        into = jax.tree.map(lambda x: jnp.zeros((x.shape[0], total, *x.shape[2:]), x.dtype), outputs)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        new, parts = function(chunk(i))
        put = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, i * size, axis=1)  # noqa: E731
        return jax.tree.map(put, carry[0], new), jax.tree.map(jnp.add, carry[1], parts)

    return jax.lax.fori_loop(0, chunks, body, (into, sums))


def _prune(planes: _Planes, alive: _Alive, top_k: int) -> tuple[_Planes, _Alive]:
    """Moves the classes that are among the best `top_k` of some pixel to the front."""
    logits = jnp.where(alive.mask[..., None, None], planes.logits, -jnp.inf)
    best, _ = jax.lax.top_k(jnp.moveaxis(logits, 1, -1), min(top_k, logits.shape[1]))
    kept = jnp.any(logits >= best[..., -1][:, None], axis=(2, 3)) & alive.mask
    order = jnp.argsort(~kept, axis=1, stable=True)
    take = jax.vmap(lambda x, index: x[index])
    planes = jax.tree.map(lambda x: take(x, order), planes)
    return planes, _Alive(take(alive.classes, order), jnp.sum(kept, axis=1))


def _in_class_order(logits: jax.Array, alive: _Alive) -> jax.Array:
    """Logits [N, T, H, W] of places to those of classes; classes without a place in use get -inf."""
    logits = jnp.where(alive.mask[..., None, None], logits, -jnp.inf)
    return jax.vmap(lambda x, index: jnp.full_like(x, -jnp.inf).at[index].set(x))(logits, alive.classes)
