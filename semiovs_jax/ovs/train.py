"""Trains the tiny CLIP of the embedded benchmark.

    python -m semiovs_jax.ovs.train --config=configs/ovs_shapes.py --workdir=runs/ovs_shapes

It sees images of the out-of-distribution domain only, drawn afresh: none of the target domain, none that a
benchmark holds. Its vocabulary is that of the target and the distractors, its labels are dense, as published
OVS heads (SED) learn from the dense labels of a base vocabulary.

The loss is contrastive per pixel: the embedding of every patch on the value path (MaskCLIP) is compared with
the text embeddings of all concepts, the cosines are resized to the labels as dense CLIP resizes them, and
their softmax at the shipped logit scale meets the label in a cross-entropy. Each step words every concept by
one of its synonyms in one of the templates. There is no image-level term: dense CLIP reads patches alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from PIL import Image
from tqdm import tqdm

from data_pipelines.drawing import BACKGROUND, IGNORE_INDEX, OOD_DOMAIN, SCENE_CLASSES, draw_scene
from data_pipelines.errors import InputError
from data_pipelines.outlines import TARGETS, UNIT_OUTLINES
from data_pipelines.shapes import scene_rng
from semiovs_jax.losses import cross_entropy
from semiovs_jax.metrics import Scores, confusion_matrix, scores
from semiovs_jax.models.clip_text import ClipText, ClipTextConfig
from semiovs_jax.models.clip_vit import ClipVit, ClipVitConfig
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.ovs.clip_weights import Clip, ClipConfig, save_clip
from semiovs_jax.ovs.dense_clip import make_dense_clip, normalize
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary
from semiovs_jax.runtime import run_command

FILE_NAME = "shapes_clip.safetensors"


class TrainState(NamedTuple):
    """The one pytree of a run.

    Attributes:
      step: int32 [], updates done.
      params: {"visual": ..., "text": ...}, pure dicts.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: optax.OptState


class Scenes(NamedTuple):
    """Square training scenes.

    Attributes:
      image: uint8 [M, S, S, 3].
      label: uint8 [M, s, s], indices of the vocabulary's concepts, 255 is ignored.
    """

    image: np.ndarray | jax.Array
    label: np.ndarray | jax.Array


def clip_config(model: Mapping[str, Any]) -> ClipConfig:
    """The architecture that `config.model` describes; its text tower reads bytes."""
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


def concept_of_scene_class(vocabulary: Vocabulary) -> np.ndarray:
    """Index of the concept that stands for each class a scene may show, int [len(SCENE_CLASSES)].

    Raises:
      InputError: the first synonyms of the concepts are not the names of the scenes' classes.
    """
    names = [concept.synonyms[0] for concept in vocabulary.concepts]
    if sorted(names) != sorted(SCENE_CLASSES):
        raise InputError(
            f"{vocabulary.origin}: the first synonyms of its concepts must be {', '.join(SCENE_CLASSES)}; "
            f"they are {', '.join(names)}"
        )
    return np.array([names.index(name) for name in SCENE_CLASSES])


def prompt_table(vocabulary: Vocabulary, context_length: int) -> np.ndarray:
    """Byte ids of every wording of every concept, int32 [C, P, L], cut to the longest.

    P is the largest number of wordings; concepts with fewer repeat theirs.
    """
    tokenizer = make_tokenizer("bytes", context_length)
    vocabulary.check_prompts(tokenizer)
    wordings = [list(chain.from_iterable(vocabulary.prompts(concept))) for concept in vocabulary.concepts]
    most = max(map(len, wordings))
    ids = np.stack([np.resize(tokenizer.encode(texts), (most, context_length)) for texts in wordings])
    return ids[:, :, : int(np.flatnonzero(ids.any(axis=(0, 1)))[-1]) + 1]


def draw_scenes(seed: int, count: int, image_size: int, label_size: int, concept_of_class: np.ndarray) -> Scenes:
    """Draws scenes of the out-of-distribution domain and squares them, as dense CLIP squares images."""
    lookup = np.full(256, IGNORE_INDEX, np.uint8)
    lookup[: len(concept_of_class)] = concept_of_class
    image = np.empty((count, image_size, image_size, 3), np.uint8)
    label = np.empty((count, label_size, label_size), np.uint8)
    for index in tqdm(range(count), desc="draw scenes", unit="scene"):
        scene, classes = draw_scene(scene_rng(seed, "ovs", index), OOD_DOMAIN)
        image[index] = _resized(scene, image_size, Image.Resampling.BILINEAR)
        label[index] = _resized(lookup[classes], label_size, Image.Resampling.NEAREST)
    return Scenes(image, label)


def _resized(plane: np.ndarray, side: int, resample: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((side, side), resample))


def mirrored(key: jax.Array, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mirrors each scene with probability 1/2; its classes stay what they are.

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
    """Start of the position table, float32 [1 + h * w, width]: sines and cosines of row and column.

    A tower this small, trained this shortly, does not learn from random positions which patches are neighbors.
    Wavelengths go from two grids down to three patches; the class token gets zeros.
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
    """AdamW after warmup and with cosine decay to zero; only matrices and kernels decay."""
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
) -> tuple[TrainState, Callable[[TrainState, Scenes], tuple[TrainState, jax.Array]]]:
    """The state before the first update, and the jitted (state, scenes) -> (state, loss).

    A step draws its batch, its views and its wordings from `fold_in(seed, step)` alone.

    Args:
      config: the experiment's config.
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
    def step(state: TrainState, scenes: Scenes) -> tuple[TrainState, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step), 3)
        index = jax.random.randint(keys[0], (batch_size,), 0, len(scenes.image))
        image, label = mirrored(keys[1], scenes.image[index].astype(jnp.float32), scenes.label[index].astype(jnp.int32))
        wording = jax.random.randint(keys[2], (len(prompts),), 0, prompts.shape[1])
        ids = jnp.asarray(prompts)[jnp.arange(len(prompts)), wording]
        loss, grads = jax.value_and_grad(loss_fn)(state.params, image, label, ids)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), loss

    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), step


def label_quality(clip: Clip, vocabulary: Vocabulary, *, seed: int, count: int) -> Scores:
    """Scores the labels dense CLIP gives to out-of-distribution images of the benchmark of that seed.

    Labels are made and compared at full resolution; distractors are background, void pixels do not count.

    Args:
      clip: the towers.
      vocabulary: of the target classes.
      seed: seed of a benchmark.
      count: number of images; the training never draws from their stream.
    """
    vision = clip.config.visual
    assert isinstance(vision, ClipVitConfig)
    size = vision.image_size[0]
    model = make_dense_clip(clip, vocabulary, image_size=size)
    side = OOD_DOMAIN.sides[1]
    num_classes = len(vocabulary.classes)

    @jax.jit
    def count_pixels(weights: Any, image: jax.Array, label: jax.Array, valid: jax.Array, shape: jax.Array) -> jax.Array:
        found = model.label(weights, image, canvas=(side, side), size=shape)
        return confusion_matrix(label, found.label, valid & found.valid, num_classes)

    confusion = np.zeros((num_classes, num_classes), np.int64)
    for index in range(count):
        scene, classes = draw_scene(scene_rng(seed, "ood", index), OOD_DOMAIN)
        height, width = classes.shape
        square = _resized(scene, size, Image.Resampling.BILINEAR).astype(np.float32)
        canvas = np.full((side, side), IGNORE_INDEX, np.int32)
        canvas[:height, :width] = classes
        valid = canvas != IGNORE_INDEX
        target = np.where(canvas <= len(TARGETS), canvas, BACKGROUND)
        shape = np.array([[height, width]], np.int32)
        confusion += np.asarray(count_pixels(model.weights, square[None], target[None], valid[None], shape))
    return scores(confusion)


def data_sha256(vocabulary: Vocabulary) -> str:
    """Hex digest of what the scenes are drawn from: outlines, domain and words."""
    domain = {
        name: [texture.__name__ for texture in value] if name in ("grounds", "fills") else value
        for name, value in vars(OOD_DOMAIN).items()
    }
    outlines = {name: [np.round(loop, 6).tolist() for loop in loops] for name, loops in UNIT_OUTLINES.items()}
    content = json.dumps([SCENE_CLASSES, outlines, domain, vocabulary.sha256], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def train_clip(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
    """Trains, measures the labels, and writes `shapes_clip.safetensors` in half precision.

    Returns:
      The path of the file.

    Raises:
      InputError: the vocabulary does not name the scenes' classes, or a prompt is too long.
    """
    vocabulary = load_vocabulary(config.vocabulary)
    clip = clip_config(config.model)
    size = config.model.image_size
    concepts = concept_of_scene_class(vocabulary)
    scenes = draw_scenes(config.seed, config.data.images, size, size // config.train.label_stride, concepts)
    scenes = Scenes(jnp.asarray(scenes.image), jnp.asarray(scenes.label))
    state, step = make_train_step(config, clip, prompt_table(vocabulary, clip.text.context_length))

    with tqdm(total=config.train.steps, desc="train CLIP", unit="step", smoothing=0.05) as progress:
        for number in range(1, config.train.steps + 1):
            state, loss = step(state, scenes)
            if number % config.train.log_every_steps == 0 or number == config.train.steps:
                progress.set_postfix(loss=f"{float(loss):.4f}")  # the loop's only wait for the device
            progress.update()

    params = jax.tree.map(lambda p: np.asarray(p, np.float16), state.params)
    widened = jax.tree.map(lambda p: p.astype(np.float32), params)
    loaded = Clip(clip, widened["visual"], widened["text"], sha256="")
    quality = label_quality(loaded, vocabulary, seed=config.seed, count=config.data.held_out)
    print(f"labels of {config.data.held_out} held-out images: mIoU {quality.mean_iou:.3f}")
    for name, iou in zip(vocabulary.classes, quality.iou, strict=True):
        print(f"  {name:<12}{iou:.3f}")
    path = Path(workdir) / FILE_NAME
    save_clip(path, clip, params["visual"], params["text"], _provenance(config, vocabulary, quality))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return path


def _provenance(config: ml_collections.ConfigDict, vocabulary: Vocabulary, quality: Scores) -> dict[str, str]:
    return {
        "source": "trained by semiovs_jax.ovs.train on drawn scenes of the out-of-distribution domain",
        "command": "python -m semiovs_jax.ovs.train --config=configs/ovs_shapes.py --workdir=WORKDIR",
        "experiment": json.dumps(config.to_dict(), sort_keys=True),
        "data_sha256": data_sha256(vocabulary),
        "held_out_miou": f"{quality.mean_iou:.4f}",
        "held_out_iou": json.dumps(
            {name: round(float(iou), 4) for name, iou in zip(vocabulary.classes, quality.iou, strict=True)}
        ),
    }


def main(flags: Any) -> None:
    """Trains with `flags.config` in `flags.workdir`."""
    train_clip(flags.config, flags.workdir)


if __name__ == "__main__":
    run_command(main)
