"""SED's aggregator: from the correlation of image and words to one mask per class.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024, and its code's
`model.py` in the ConvNeXt variant ("V1", linear attention), as SemiOVS runs it.

Arrays that hold a plane per class are [N, T, h, w, C] (`class_planes`). Only the class attention looks across
classes, and only through sums over them, so that everything runs on a few classes at a time.

What is computed differs from the published code in three ways that change nothing but rounding:
- guidance is the same for all classes: its share of a convolution is computed once per image and added;
- a transposed convolution followed by a convolution, with nothing between, is one (`sed_decoder.CornerConv`);
- the correlation is computed as planes of classes, the layout the convolutions read.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.class_planes import Places, by_chunks, per_class, pool, unpool
from semiovs_jax.models.layers import full_precision
from semiovs_jax.models.sed.decoder import SedDecoder
from semiovs_jax.models.upsampling import ConvTranspose2x2


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
        flowing into what they read; empty where classes were pruned.
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
        num_classes = len(text)
        chunks = -(-num_classes // class_chunk) if class_chunk else 1
        size = -(-num_classes // chunks)
        text = jnp.pad(text, ((0, size * chunks - num_classes), (0, 0), (0, 0)))
        places = Places.all(len(dense), len(text), num_classes)

        planes = self._embed(correlate(dense, text), size)
        found = [planes.logits]
        for stage, level in enumerate(levels):
            chunks_in_use: int | jax.Array = chunks
            if top_k:
                planes, places = places.prune(planes.logits, top_k, planes)
                chunks_in_use = -(-jnp.max(places.used) // size)
            planes = self._decode(stage, planes, level, places.in_use, size, chunks_in_use, pooling)
            found.append(planes.logits)
        if top_k:
            return SedLogits(places.in_class_order(planes.logits)[:, :num_classes], ())
        *auxiliary, mask = (logits[:, :num_classes] for logits in found)
        return SedLogits(mask, tuple(auxiliary))

    def _embed(self, correlation: jax.Array, size: int) -> _Planes:
        """The first decoder's input."""

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
        in_use: jax.Array,
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
            features, in_use = chunk
            features = per_class(decoder.block, features)
            return features, decoder.attention.summarize(pool(features, pooling), in_use)

        mixed, sums = by_chunks(mix, (planes.features, in_use), size, chunks, into=planes.features)

        def refine(chunk: tuple[jax.Array, jax.Array]) -> tuple[_Planes, tuple[()]]:
            features, correlation = chunk
            attended = decoder.attention(pool(features, pooling), sums)
            features = features + unpool(attended, features.shape[2:4])
            correlation = jax.nn.relu(per_class(link, correlation))
            features = upsample(features, correlation)
            logits = self._read(stage + 1, features)
            if last:  # read chunk by chunk, the finest features need never be there whole
                features = correlation = features[..., :0]
            return _Planes(features, correlation, logits), ()

        refined, _ = by_chunks(refine, (mixed, planes.correlation), size, chunks)
        return refined

    def _read(self, stage: int, features: jax.Array) -> jax.Array:
        """Logits [N, T, h, w] of the head before (or, the last one, behind) a decoder."""
        last = stage == len(self.heads) - 1
        features = features if last else jax.lax.stop_gradient(features)
        return full_precision(per_class(self.heads[stage], features)[..., 0])
