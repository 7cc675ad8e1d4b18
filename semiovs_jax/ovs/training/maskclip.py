"""Trains the tiny CLIP with which MaskCLIP labels the embedded benchmark.

Training data are drawn scenes of the out-of-distribution domain: none of the target domain, and none of the benchmark's
own scenes. The vocabulary contains the target classes and the distractors. The labels are dense, like those that
published OVS models (SED) are trained on.

The loss is contrastive per pixel. The embedding of every patch on the value path (MaskCLIP) is compared with the text
embeddings of all concepts. The cosines are resized to the labels as MaskCLIP resizes them, and multiplied by the CLIP's
logit scale; the loss is their cross-entropy. Each step draws, for every concept, one synonym in one template. There is
no image-level term, because MaskCLIP reads patch embeddings only.
"""

import itertools
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from data_pipelines.shapes.drawing import BACKGROUND, IGNORE_INDEX
from semiovs_jax.losses import cross_entropy
from semiovs_jax.models.clip.file import CLIP, Clip, ClipConfig, normalize
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.models.clip.vit import ClipVit, ClipVitConfig
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.ovs.maskclip import make_maskclip
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.training.loop import Step, TrainState, provenance, report_quality, run_steps
from semiovs_jax.ovs.training.quality import label_quality
from semiovs_jax.ovs.training.scenes import (
    MAX_SIDE,
    Scenes,
    concept_of_scene_class,
    data_sha256,
    draw_scenes,
    held_out_scenes,
)
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary

FILE_NAME = "shapes_clip.safetensors"


def clip_config(model: Mapping[str, Any]) -> ClipConfig:
    """The architecture that `config.model` describes. Its text tower reads bytes."""
    size, embed_dim, context = model["image_size"], model["embed_dim"], model["text"]["context_length"]
    vocab_size = make_tokenizer("bytes", context).vocab_size
    return ClipConfig(
        visual=ClipVitConfig(
            patch_size=model["patch_size"], embed_dim=embed_dim, image_size=(size, size), **model["visual"]
        ),
        text=ClipTextConfig(vocab_size=vocab_size, embed_dim=embed_dim, tokenizer="bytes", **model["text"]),
        normalization="imagenet",
        logit_scale=model["logit_scale"],
    )


def prompt_table(vocabulary: Vocabulary, context_length: int) -> np.ndarray:
    """Byte ids of all prompts of every concept, int32 [C, P, L], where L is the length of the longest.

    P is the largest number of prompts of a concept. Concepts with fewer prompts repeat them.
    """
    tokenizer = make_tokenizer("bytes", context_length)
    vocabulary.check_prompts(tokenizer)
    wordings = [list(chain.from_iterable(vocabulary.prompts(concept))) for concept in vocabulary.concepts]
    most = max(map(len, wordings))
    ids = np.stack([np.resize(tokenizer.encode(texts), (most, context_length)) for texts in wordings])
    return ids[:, :, : int(np.flatnonzero(ids.any(axis=(0, 1)))[-1]) + 1]


def mirrored(key: jax.Array, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mirrors each scene and its label with probability 1/2.

    Args:
      key: random key.
      image: [N, S, S, 3].
      label: [N, s, s].
    """
    mirror = jax.random.bernoulli(key, 0.5, (len(image), 1, 1))
    return (
        jnp.where(mirror[..., None], image[:, :, ::-1], image),
        jnp.where(mirror, label[:, :, ::-1], label),
    )


def sine_positions(config: ClipVitConfig) -> jax.Array:
    """Initial position embeddings, float32 [1 + h * w, width]: sines and cosines of row and column.

    With random position embeddings, a tower this small does not learn in so few steps which patches are neighbors.
    Wavelengths range from twice the grid down to three patches. The class token gets zeros.
    """
    h, w = config.grid
    waves = np.geomspace(0.5, max(h, w) / 3, config.width // 4)
    parts = [
        wave(2 * np.pi * position.reshape(-1, 1) * waves / max(h, w))
        for position in np.indices((h, w))
        for wave in (np.sin, np.cos)
    ]
    table = np.pad(np.concatenate(parts, axis=1), ((1, 0), (0, config.width % 4)))
    return jnp.asarray(0.5 * table, jnp.float32)


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """AdamW with warmup and cosine decay to zero. Weight decay applies to matrices and kernels only."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup_steps, config.steps - 1), config.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def make_train_step(
    config: ml_collections.ConfigDict, clip: ClipConfig, prompts: np.ndarray
) -> tuple[TrainState, Step]:
    """Returns the state before the first update, and the jitted (state, scenes) -> (state, {"loss"}).

    The batch, its mirroring and its prompts depend on `fold_in(seed, step)` only.

    Args:
      config: the whole config of the experiment.
      clip: the architecture.
      prompts: int32 [C, P, L] of `prompt_table`.
    """
    vision = clip.visual
    assert isinstance(vision, ClipVitConfig)
    rngs = nnx.Rngs(config.seed)
    towers = {"visual": ClipVit(vision, rngs=rngs), "text": ClipText(clip.text, rngs=rngs)}
    graphs = {name: nnx.graphdef(tower) for name, tower in towers.items()}
    params = {name: nnx.to_pure_dict(nnx.state(tower, nnx.Param)) for name, tower in towers.items()}
    params["visual"]["pos_embed"] = sine_positions(vision)
    optimizer = make_optimizer(config.train)
    end_id = make_tokenizer("bytes", clip.text.context_length).end_id
    batch_size = config.train.batch_size

    def loss_fn(params: dict[str, Any], image: jax.Array, label: jax.Array, ids: jax.Array) -> jax.Array:
        dense = nnx.merge(graphs["visual"], params["visual"])(normalize(image, clip.normalization)).dense
        text = nnx.merge(graphs["text"], params["text"])(ids, end_id=end_id)
        text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
        cosine = jnp.einsum("nhwd,cd->nhwc", dense, text)
        logits = clip.logit_scale * resize_bilinear(cosine, (label.shape[1], label.shape[2]), align_corners=False)
        valid = label != IGNORE_INDEX
        loss = cross_entropy(logits, jnp.where(valid, label, BACKGROUND))
        return jnp.sum(loss * valid) / jnp.maximum(jnp.sum(valid), 1)

    @jax.jit
    def step(state: TrainState, scenes: Scenes) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step), 3)
        index = jax.random.randint(keys[0], (batch_size,), 0, len(scenes.image))
        image, label = mirrored(keys[1], scenes.image[index].astype(jnp.float32), scenes.label[index].astype(jnp.int32))
        wording = jax.random.randint(keys[2], (len(prompts),), 0, prompts.shape[1])
        ids = jnp.asarray(prompts)[jnp.arange(len(prompts)), wording]
        with jax.default_matmul_precision("highest"):
            loss, grads = jax.value_and_grad(loss_fn)(state.params, image, label, ids)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    return TrainState.create(params, optimizer), step


def train_maskclip(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
    """Trains a CLIP, evaluates its labels on held-out scenes, and writes `shapes_clip.safetensors` in half precision.

    It takes minutes and saves no checkpoint.

    Args:
      config: the whole config of an experiment such as `configs/ovs_shapes.py`.
      workdir: folder of the file.

    Returns:
      The path of the file.

    Raises:
      InputError: the vocabulary does not match the scenes' classes, or a prompt is too long.
    """
    vocabulary = load_vocabulary(config.vocabulary)
    clip = clip_config(config.model)
    size = config.model.image_size
    concepts = concept_of_scene_class(vocabulary)
    scenes = draw_scenes(config.seed, config.data.images, size, size // config.train.label_stride, concepts)
    scenes = Scenes(jnp.asarray(scenes.image), jnp.asarray(scenes.label))
    state, step = make_train_step(config, clip, prompt_table(vocabulary, clip.text.context_length))
    state = run_steps(step, state, itertools.repeat(scenes), config)

    params = jax.tree.map(lambda p: np.asarray(p, np.float16), state.params)
    widened = jax.tree.map(lambda p: p.astype(np.float32), params)
    loaded = Clip(clip, widened["visual"], widened["text"], sha256="")
    model = make_maskclip(loaded, vocabulary, image_size=size)
    held_out = held_out_scenes(config.seed, config.data.held_out)
    quality = label_quality(model, held_out, (MAX_SIDE, MAX_SIDE), IGNORE_INDEX)
    report_quality(quality, vocabulary.classes, config.data.held_out)
    path = Path(workdir) / FILE_NAME
    facts = {
        "source": "trained by semiovs_jax.ovs.train on drawn scenes of the out-of-distribution domain",
        "command": "python -m semiovs_jax.ovs.train --config=configs/ovs_shapes.py --workdir=WORKDIR",
        "data_sha256": data_sha256(vocabulary),
    }
    CLIP.save(path, clip, params, provenance(config, quality, vocabulary.classes, facts))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return path
