"""SED's aggregator: one mask per class from the correlation of image and text embeddings.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024, and its code's
`model.py` in the ConvNeXt variant ("V1", linear attention), as SemiOVS runs it.

Feature maps of every class are [N, T, h, w, C] (`class_planes`). Only the class attention mixes classes, and only
through sums over them. So everything runs on a few classes at a time.

The computation differs from the published code in three ways, which change the result by rounding alone:
- guidance is the same for all classes: its part of a convolution is computed once per image and added;
- a transposed convolution directly followed by a convolution is fused with it (`upsampling.CornerConv`);
- the correlation is computed in the layout that the convolutions take, [N, T, h, w, P].
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.class_planes import ClassSlots, by_chunks, per_class, pool, unpool
from semiovs_jax.models.precision import full_precision
from semiovs_jax.models.sed.decoder import SedDecoder
from semiovs_jax.models.upsampling import ConvTranspose2x2


@dataclasses.dataclass(frozen=True)
class SedConfig:
    """Architecture of an aggregator; the defaults are those of `convnextB_768.yaml`.

    Attributes:
      num_templates: prompt templates, the channels of the correlation.
      width: channels of the embedded correlation.
      decoder_widths: output channels of each decoder.
      level_widths: channels of the image tower's levels that guide the decoders, the coarsest first.
      guidance_widths: channels of each decoder's image guidance, and of its correlation guidance.
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
    """Logits of the heads for h x w embeddings, float32 or wider.

    Attributes:
      mask: [N, T, 8 h, 8 w]; the sigmoid is the probability of a class at a pixel.
      auxiliary: [N, T, s h, s w] for s = 1, 2, 4, from a head on each decoder's input, into which no gradient flows.
        Empty if classes were pruned.
    """

    mask: jax.Array
    auxiliary: tuple[jax.Array, ...]


def unit(x: jax.Array) -> jax.Array:
    """Divides by the L2 norm over the last axis, in float32 or wider."""
    x = full_precision(x)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def correlate(dense: jax.Array, text: jax.Array) -> jax.Array:
    """Cosine similarities of pixels and prompts, as feature maps of every class.

    Args:
      dense: float [N, h, w, D], embeddings of the pixels, of any length.
      text: float [T, P, D], unit embeddings of T classes in P templates.

    Returns:
      float [N, T, h, w, P], float32 or wider.
    """
    return jnp.einsum("nhwd,tpd->nthwp", unit(dense), text, precision=jax.lax.Precision.HIGHEST)


class _Planes(NamedTuple):
    """The input of a decoder; axis 1 indexes class slots.

    Attributes:
      features: float [N, T, h, w, C].
      correlation: float [N, T, h, w, C'], the correlation for the first decoder, later its guidance of the decoder
        before.
      logits: float [N, T, h, w], of the head on `features`.
    """

    features: jax.Array
    correlation: jax.Array
    logits: jax.Array


class SedAggregator(nnx.Module):
    """The aggregator with its four heads.

    The correlation, the sums of the attention and the logits are float32 or wider. A `dtype` of None is that of the
    parameters here.

    Args:
      config: the architecture.
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
          top_k: as in the reference's fast inference, before each decoder keep only the classes that are among the
            `top_k` best of at least one pixel, by the logits of the head there; 0 keeps all. The logits of dropped
            classes are -inf. Not differentiable.
        """
        num_classes = len(text)
        chunks = -(-num_classes // class_chunk) if class_chunk else 1
        size = -(-num_classes // chunks)
        text = jnp.pad(text, ((0, size * chunks - num_classes), (0, 0), (0, 0)))
        slots = ClassSlots.all(len(dense), len(text), num_classes)

        planes = self._embed(correlate(dense, text), size)
        found = [planes.logits]
        for stage, level in enumerate(levels):
            active_chunks: int | jax.Array = chunks
            if top_k:
                planes, slots = slots.prune(planes.logits, top_k, planes)
                active_chunks = -(-jnp.max(slots.num_active) // size)
            planes = self._decode(stage, planes, level, slots.active, size, active_chunks, pooling)
            found.append(planes.logits)
        if top_k:
            return SedLogits(slots.in_class_order(planes.logits)[:, :num_classes], ())
        *auxiliary, mask = (logits[:, :num_classes] for logits in found)
        return SedLogits(mask, tuple(auxiliary))

    def _embed(self, correlation: jax.Array, size: int) -> _Planes:
        """Computes the input of the first decoder."""

        def embed(correlation: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[()]]:
            features = per_class(self.embed, correlation)
            return (features, self._read(0, features)), ()

        (features, logits), _ = by_chunks(embed, correlation, size, correlation.shape[1] // size)
        return _Planes(features, correlation, logits)

    def _decode(
        self,
        stage: int,
        planes: _Planes,
        level: jax.Array,
        active: jax.Array,
        size: int,
        chunks: int | jax.Array,
        pooling: int,
    ) -> _Planes:
        """Runs a decoder on the first `chunks` chunks of `size` slots; the rest of the result is garbage."""
        decoder, link = self.decoders[stage], self.correlation_guidance[stage]
        last = stage == len(self.decoders) - 1
        guidance = jax.nn.relu(self.image_guidance[stage](level))
        upsample = decoder.upsampler(guidance)

        def mix(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            features, active = chunk
            features = per_class(decoder.block, features)
            return features, decoder.attention.summarize(pool(features, pooling), active)

        mixed, sums = by_chunks(mix, (planes.features, active), size, chunks, into=planes.features)

        def refine(chunk: tuple[jax.Array, jax.Array]) -> tuple[_Planes, tuple[()]]:
            features, correlation = chunk
            attended = decoder.attention(pool(features, pooling), sums)
            features = features + unpool(attended, features.shape[2:4])
            correlation = jax.nn.relu(per_class(link, correlation))
            features = upsample(features, correlation)
            logits = self._read(stage + 1, features)
            if last:  # no decoder follows: do not store the finest features of all classes
                features = correlation = features[..., :0]
            return _Planes(features, correlation, logits), ()

        refined, _ = by_chunks(refine, (mixed, planes.correlation), size, chunks)
        return refined

    def _read(self, stage: int, features: jax.Array) -> jax.Array:
        """Logits [N, T, h, w] of the head on the input of decoder `stage`, or on the output of the last one."""
        last = stage == len(self.heads) - 1
        features = features if last else jax.lax.stop_gradient(features)
        return full_precision(per_class(self.heads[stage], features)[..., 0])
