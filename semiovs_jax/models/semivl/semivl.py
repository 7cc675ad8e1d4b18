"""SemiVL's student: CLIP's vision transformer with a head that is guided by text embeddings of the class names.

Source: Hoyer et al., "SemiVL: Semi-Supervised Semantic Segmentation with Vision-Language Guidance", 2024, and
google-research/semivl `vlm.py` and `builder.py`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.clip.vit import MASKCLIP, ClipVit, ClipVitConfig
from semiovs_jax.models.layers import masked_variants, resize_bilinear, split_variants
from semiovs_jax.models.remat import remat_rest
from semiovs_jax.models.semivl.vlg import VlgConfig, VlgHead


@dataclasses.dataclass(frozen=True)
class SemiVLConfig:
    """Architecture of a student; the defaults are the published ones.

    Attributes:
      visual: the backbone, with MaskCLIP's epsilon and activation; the training crop's size replaces its image size.
      out_layers: 0-based blocks, in order, whose value paths are inputs of the head beside the dense embedding.
      head: the head.
    """

    visual: ClipVitConfig = dataclasses.field(default_factory=lambda: ClipVitConfig(**MASKCLIP))
    out_layers: tuple[int, ...] = (0, 4)
    head: VlgConfig = dataclasses.field(default_factory=VlgConfig)


class TextEmbedding(nnx.BatchStat):
    """Text embeddings of the class names, [K, D]; constant.

    They are stored with the running statistics: checkpoints contain them, gradients and the optimizer do not.
    """


def resize_logits(logits: jax.Array, image_size: int, shape: tuple[int, int]) -> jax.Array:
    """Resizes logits [N, h, w, K] to a square of side `image_size`, then to [N, *shape, K], as the reference does."""
    for size in ((image_size, image_size), shape):
        if logits.shape[1:3] != size:
            logits = resize_bilinear(logits, size, align_corners=False)
    return logits


class SemiVL(nnx.Module):
    """CLIP's vision transformer with the VLG head.

    The text embeddings are zero until weights are loaded; until then all classes have the same logits. Embeddings and
    logits are float32 or wider, whatever `dtype`.

    Args:
      config: the architecture.
      num_classes: channels of the logits.
      image_size: side of the training crop, in pixels. The position table covers its patches, and every image's
        logits are first resized to a square of this side, as in the reference.

    Attributes:
      perturbed_channels: channels of the features that `channel_masks` multiply: levels and dense embedding.
    """

    fixed_size: ClassVar[bool] = True
    mixes_images: ClassVar[bool] = False
    size_multiple: int = 1

    def __init__(
        self,
        config: SemiVLConfig,
        num_classes: int,
        *,
        image_size: int,
        dtype: DTypeLike | None = None,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        patch = config.visual.patch_size
        side = -(-image_size // patch) * patch
        visual = dataclasses.replace(config.visual, image_size=(side, side))
        widths = (visual.width,) * len(config.out_layers)
        self.config = config
        self.image_size = image_size
        self.dtype = dtype
        self.backbone = ClipVit(visual, dtype=dtype, remat=remat, rngs=rngs)
        self.head = VlgHead(config.head, widths, visual.embed_dim, dtype=dtype, rngs=rngs)
        self.text = TextEmbedding(jnp.zeros((num_classes, visual.embed_dim)))
        self.perturbed_channels = (*widths, visual.embed_dim)
        self.class_embedding_dim: int | None = visual.embed_dim

    def __call__(
        self, x: jax.Array, *, channel_masks: tuple[jax.Array, ...] | None = None, size: jax.Array | None = None
    ) -> jax.Array:
        """Computes logits at the input's resolution.

        Args:
          x: Normalized images [N, H, W, 3], floating point.
          channel_masks: See `Student`. The head runs once on all variants.
          size: Must be None.

        Returns:
          Logits [N, H, W, K], or [m, N, H, W, K] with `channel_masks`; float32 (float64 for a float64 x).

        Raises:
          ValueError: `size` is given, or the images have fewer patches than the head pools.
        """
        if size is not None:
            raise ValueError("SemiVL takes no padded images, but got size; evaluate it by windows (config.eval.window)")
        levels = self.encode(x)
        if channel_masks is not None:
            levels = tuple(masked_variants(level, masks) for level, masks in zip(levels, channel_masks, strict=True))
        logits = self.decode(levels, (x.shape[1], x.shape[2]))
        return logits if channel_masks is None else split_variants(logits, len(channel_masks[0]))

    def encode(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """See `IndependentStudent`: the value paths of `out_layers`, and the dense embedding."""
        features = self.backbone(x if self.dtype is None else x.astype(self.dtype), out_indices=self.config.out_layers)
        return (*features.levels, features.dense)

    def decode(self, levels: tuple[jax.Array, ...], shape: tuple[int, int]) -> jax.Array:
        """See `IndependentStudent`."""
        head = remat_rest(VlgHead.__call__, self.backbone.remat)
        logits = head(self.head, levels[:-1], levels[-1], self.text[...])
        return resize_logits(logits, self.image_size, shape)

    @staticmethod
    def parameter_groups(params: dict[Any, Any]) -> dict[Any, Any]:
        """See `Student`; only the attention and the positions of the backbone are trained."""

        def group(path: tuple[Any, ...], _: Any) -> str:
            part, *names = (entry.key for entry in path)
            if part != "backbone":
                return "head"
            return "backbone" if "attention" in names or names == ["pos_embed"] else "frozen"

        return jax.tree_util.tree_map_with_path(group, params)
