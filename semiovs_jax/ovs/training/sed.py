"""Trains a SED: towers and aggregator learn from the dense labels of a base vocabulary.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024; its code,
xb534/SED at 250b495f (`sed/sed_model.py`, `train_net.py`).
"""

import dataclasses
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
from semiovs_jax.models.layers import DTYPES
from semiovs_jax.models.sed.aggregator import SedAggregator
from semiovs_jax.models.sed.file import SED, SedWeights
from semiovs_jax.ovs.text import embed_by_template, embed_text, encode_prompts
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.training.loop import Step, TrainState, provenance, report_quality, run_restorable
from semiovs_jax.ovs.training.sed_init import initial_sed
from semiovs_jax.ovs.training.sed_losses import contrastive_loss, sed_losses
from semiovs_jax.ovs.training.sed_optim import make_optimizer, rate_multipliers
from semiovs_jax.ovs.training.task import Task, data_facts, held_out_quality, make_task
from semiovs_jax.runtime.sharding import make_mesh, replicated, shard_batch
from semiovs_jax.runtime.workdir import check_workdir

_FILE_DTYPES = {"float16": np.float16, "float32": np.float32}


def make_train_step(
    config: ml_collections.ConfigDict, sed: SedWeights, task: Task, mesh: Mesh
) -> tuple[TrainState, Step]:
    """The state before the first update, and the jitted (state, batch) -> (state, metrics).

    A step has no randomness of its own: what it sees was drawn from seed and step by the data pipeline. Parts with
    learning rate 0 are constants, without gradient or optimizer state; a frozen text tower embeds its prompts once.

    Args:
      config: the experiment's config.
      sed: where training starts.
      task: vocabulary and ignore index are read.
      mesh: batches are split over it, the state is replicated.

    Raises:
      InputError: an unknown dtype, or a prompt that the text tower cannot read.
    """
    train, vocabulary = config.train, task.vocabulary
    if config.model.dtype not in DTYPES:
        raise InputError(f"config.model.dtype is {config.model.dtype!r}; choose one of {', '.join(sorted(DTYPES))}")
    dtype = DTYPES[config.model.dtype]
    modules = {
        "visual": lambda: ClipConvNext(sed.config.visual, dtype=dtype, rngs=nnx.Rngs(0)),
        "text": lambda: ClipText(sed.config.text, dtype=dtype, rngs=nnx.Rngs(0)),
        "aggregator": lambda: SedAggregator(sed.config.aggregator, dtype=dtype, rngs=nnx.Rngs(0)),
    }
    graphs = {part: nnx.graphdef(nnx.eval_shape(module)) for part, module in modules.items()}
    tokenizer = make_tokenizer(sed.config.text.tokenizer, sed.config.text.context_length)
    prompts = encode_prompts(vocabulary, tokenizer)

    def encode_text(params: Any, ids: jax.Array) -> jax.Array:
        return nnx.merge(graphs["text"], params)(ids, end_id=tokenizer.end_id)

    trained = rate_multipliers(config.optim)
    frozen = {part: getattr(sed, part) for part in modules if part not in trained}
    if "text" in frozen:
        frozen["text"] = embed_text(sed.config.text, sed.text, vocabulary)
    frozen = jax.device_put(frozen, replicated(mesh))
    optimizer = make_optimizer(config.optim, train.steps)

    def loss_fn(
        params: dict[str, Any], frozen: dict[str, Any], batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        visual, aggregator = (nnx.merge(graphs[part], (params | frozen)[part]) for part in ("visual", "aggregator"))
        text = (
            embed_by_template(lambda ids: encode_text(params["text"], ids), prompts)
            if "text" in params
            else frozen["text"]
        )
        image = normalize(batch["image"].astype(jnp.float32), sed.config.normalization)
        features = visual(jnp.where(batch["valid"][..., None], image, 0))  # padding has the mean color
        label = batch["label"].astype(jnp.int32)
        chosen = jax.tree.map(lambda x: x[:: train.aggregator_stride], features)
        guides = chosen.levels[-2::-1]
        if train.detach_guides:
            guides = jax.lax.stop_gradient(guides)
        losses = sed_losses(
            aggregator(chosen.dense, text, guides, pooling=train.pooling),
            label[:: train.aggregator_stride],
            vocabulary.class_of_concept,
            ignore_index=task.ignore_index,
            ignore_as_negative=train.ignore_as_negative,
        )
        total = sum(losses.values(), start=jnp.zeros(()))
        if train.contrastive_weight:
            losses["contrastive"] = contrastive_loss(features.dense, text, label, vocabulary.class_of_concept)
            total += train.contrastive_weight * losses["contrastive"]
        return total, {"loss": total} | losses

    def step(
        state: TrainState, batch: dict[str, jax.Array], frozen: dict[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, frozen, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
    params = {part: jax.tree.map(jnp.asarray, getattr(sed, part)) for part in trained}
    state = jax.device_put(TrainState.create(params, optimizer), replicated(mesh))
    return state, lambda state, batch: compiled(state, batch, frozen)


def train_sed(config: ml_collections.ConfigDict, workdir: str | Path) -> Path | None:
    """Trains, measures the labels of held-out images, and writes `config.file`; goes on from a checkpoint.

    Args:
      config: an experiment such as `configs/ovs_coco_stuff.py`.
      workdir: folder of checkpoints and weights.

    Returns:
      The path of the file; None if the machine was taken away before the last step.

    Raises:
      InputError: something a person has to mend.
    """
    workdir = check_workdir(workdir)
    mesh = make_mesh()
    if config.train.batch_size % mesh.size:
        raise InputError(
            f"config.train.batch_size={config.train.batch_size} cannot be split over {mesh.size} devices; "
            f"set it to a multiple of {mesh.size}"
        )
    if config.precision not in _FILE_DTYPES:
        raise InputError(f"config.precision={config.precision!r}: choose one of {', '.join(sorted(_FILE_DTYPES))}")
    task = make_task(config)
    sed = initial_sed(config, len(task.vocabulary.templates))
    state, step = make_train_step(config, sed, task, mesh)

    def sharded_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        return step(state, shard_batch({name: batch["labeled"][name] for name in ("image", "label", "valid")}, mesh))

    state = run_restorable(sharded_step, state, task.batches, config, workdir)
    if int(state.step) < config.train.steps:
        return None
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
