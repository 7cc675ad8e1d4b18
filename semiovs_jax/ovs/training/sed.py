"""Trains a SED: CLIP's towers and the aggregator, on images with dense labels.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024; xb534/SED at
250b495f, `sed/sed_model.py` and `train_net.py`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.convnext import ClipConvNext
from semiovs_jax.models.clip.file import normalize
from semiovs_jax.models.clip.text import ClipText
from semiovs_jax.models.precision import DTYPES, PRECISIONS
from semiovs_jax.models.sed.aggregator import SedAggregator
from semiovs_jax.models.sed.file import SED, SedWeights
from semiovs_jax.ovs.options import check_choices
from semiovs_jax.ovs.text import Prompts, embed_by_template, embed_text, encode_prompts
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.training.loop import Step, TrainState, provenance, report_quality, run_restorable
from semiovs_jax.ovs.training.sed_init import initial_sed
from semiovs_jax.ovs.training.sed_losses import contrastive_loss, sed_losses
from semiovs_jax.ovs.training.sed_optim import make_optimizer, rate_multipliers
from semiovs_jax.ovs.training.task import Task, data_facts, held_out_quality, make_task
from semiovs_jax.runtime.sharding import make_mesh, replicated, shard_batch
from semiovs_jax.runtime.workdir import check_workdir

_FILE_DTYPES = {"float16": np.float16, "float32": np.float32}


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """The static side of the loss.

    Attributes:
      graphs: graphs of the parts "visual", "text" and "aggregator".
      prompts: token ids of the vocabulary.
      end_id: the token id that ends a prompt.
      normalization: of the image tower's input, a key of `NORMALIZATIONS`.
      class_of_concept: the class of each concept, ascending.
      ignore_index: the label of pixels to leave out.
      options: `config.train`; read are aggregator_stride, detach_guides, pooling, ignore_as_negative and
        contrastive_weight.
    """

    graphs: Mapping[str, nnx.GraphDef]
    prompts: Prompts
    end_id: int
    normalization: str
    class_of_concept: tuple[int, ...]
    ignore_index: int
    options: ml_collections.ConfigDict


def total_loss(
    params: dict[str, Any], *, frozen: dict[str, Any], batch: dict[str, jax.Array], spec: LossSpec
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch: the sum over the aggregator's heads, plus the weighted contrastive loss.

    Args:
      params: parameters of the trained parts.
      frozen: parameters of the frozen parts; of a frozen text tower, its text embeddings float [T, P, D] instead.
      batch: "image" uint8 [N, S, S, 3], "label" uint8 [N, s, s] and "valid" bool [N, S, S].
      spec: the static side.

    Returns:
      The loss, and the metrics: "loss" and every summand by name.
    """
    options = spec.options
    visual, aggregator = (nnx.merge(spec.graphs[part], (params | frozen)[part]) for part in ("visual", "aggregator"))
    text = _embed_text(params["text"], spec) if "text" in params else frozen["text"]
    image = normalize(batch["image"].astype(jnp.float32), spec.normalization)
    features = visual(jnp.where(batch["valid"][..., None], image, 0))  # padding gets the mean color
    label = batch["label"].astype(jnp.int32)
    chosen = jax.tree.map(lambda x: x[:: options.aggregator_stride], features)
    guides = chosen.levels[-2::-1]
    if options.detach_guides:
        guides = jax.lax.stop_gradient(guides)
    losses = sed_losses(
        aggregator(chosen.dense, text, guides, pooling=options.pooling),
        label[:: options.aggregator_stride],
        spec.class_of_concept,
        ignore_index=spec.ignore_index,
        ignore_as_negative=options.ignore_as_negative,
    )
    total = sum(losses.values(), start=jnp.zeros(()))
    if options.contrastive_weight:
        losses["contrastive"] = contrastive_loss(features.dense, text, label, spec.class_of_concept)
        total += options.contrastive_weight * losses["contrastive"]
    return total, {"loss": total} | losses


def _embed_text(params: Any, spec: LossSpec) -> jax.Array:
    tower = nnx.merge(spec.graphs["text"], params)
    return embed_by_template(lambda ids: tower(ids, end_id=spec.end_id), spec.prompts)


def make_train_step(
    config: ml_collections.ConfigDict, sed: SedWeights, task: Task, mesh: Mesh
) -> tuple[TrainState, Step]:
    """Returns the state before the first update, and the jitted (state, batch) -> (state, metrics).

    The step draws no random numbers: the data pipeline draws all of them. Parts with learning rate 0 are constants
    without gradient or optimizer state. A frozen text tower embeds its prompts once.

    Args:
      config: the whole config of the experiment.
      sed: the initial weights.
      task: its vocabulary and its ignore index are read.
      mesh: batches are split over it, the state is replicated.

    Raises:
      InputError: `config.model.dtype` or `matmul_precision` is invalid, or a prompt is too long for the text tower.
    """
    precision = config.model.get("matmul_precision", "highest")
    names = {"dtype": config.model.dtype, "matmul_precision": precision}
    check_choices("config.model", names, {"dtype": DTYPES, "matmul_precision": PRECISIONS})
    dtype = DTYPES[config.model.dtype]
    modules = {
        "visual": lambda: ClipConvNext(sed.config.visual, dtype=dtype, rngs=nnx.Rngs(0)),
        "text": lambda: ClipText(sed.config.text, dtype=dtype, rngs=nnx.Rngs(0)),
        "aggregator": lambda: SedAggregator(sed.config.aggregator, dtype=dtype, rngs=nnx.Rngs(0)),
    }
    tokenizer = make_tokenizer(sed.config.text.tokenizer, sed.config.text.context_length)
    spec = LossSpec(
        graphs={part: nnx.graphdef(nnx.eval_shape(module)) for part, module in modules.items()},
        prompts=encode_prompts(task.vocabulary, tokenizer),
        end_id=tokenizer.end_id,
        normalization=sed.config.normalization,
        class_of_concept=task.vocabulary.class_of_concept,
        ignore_index=task.ignore_index,
        options=config.train,
    )
    trained = rate_multipliers(config.optim)
    frozen = {part: getattr(sed, part) for part in modules if part not in trained}
    if "text" in frozen:
        frozen["text"] = embed_text(sed.config.text, sed.text, task.vocabulary)
    frozen = jax.device_put(frozen, replicated(mesh))
    optimizer = make_optimizer(config.optim, config.train.steps)

    def step(
        state: TrainState, batch: dict[str, jax.Array], frozen: dict[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss_fn = functools.partial(total_loss, frozen=frozen, batch=batch, spec=spec)
        with jax.default_matmul_precision(precision):
            grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
    params = {part: jax.tree.map(jnp.asarray, getattr(sed, part)) for part in trained}
    state = jax.device_put(TrainState.create(params, optimizer), replicated(mesh))
    return state, lambda state, batch: compiled(state, batch, frozen)


def train_sed(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
    """Trains a SED, evaluates its labels on held-out images, and writes `config.file`. Resumes from checkpoints.

    Args:
      config: the whole config of an experiment such as `configs/ovs_coco_stuff.py`.
      workdir: folder of checkpoints and weights.

    Returns:
      The path of the file.

    Raises:
      InputError: a config value, an input file or the workdir is invalid.
      Stopped: a signal has stopped the training; its checkpoint is saved.
    """
    workdir = check_workdir(workdir)
    mesh = make_mesh()
    if config.train.batch_size % mesh.size:
        raise InputError(
            f"config.train.batch_size={config.train.batch_size} cannot be split over {mesh.size} devices; "
            f"set it to a multiple of {mesh.size}"
        )
    check_choices("config", config, {"precision": _FILE_DTYPES})
    task = make_task(config)
    sed = initial_sed(config, len(task.vocabulary.templates))
    state, step = make_train_step(config, sed, task, mesh)

    def sharded_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        return step(state, shard_batch({name: batch["labeled"][name] for name in ("image", "label", "valid")}, mesh))

    state = run_restorable(sharded_step, state, task.batches, config, workdir)
    return _finish(config, dataclasses.replace(sed, **jax.device_get(state.params), sha256=""), workdir)


def _finish(config: ml_collections.ConfigDict, sed: SedWeights, workdir: Path) -> Path:
    parts = {
        part: jax.tree.map(lambda leaf: np.asarray(leaf, _FILE_DTYPES[config.precision]), getattr(sed, part))
        for part in ("visual", "text", "aggregator")
    }
    as_loaded = jax.tree.map(lambda leaf: leaf.astype(np.float32), parts)
    quality, classes = held_out_quality(config, dataclasses.replace(sed, **as_loaded))
    if quality is not None:
        report_quality(quality, classes, config.data.held_out)
    path = workdir / config.file
    if jax.process_index() == 0:
        SED.save(path, sed.config, parts, provenance(config, quality, classes, data_facts(config)))
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return path
