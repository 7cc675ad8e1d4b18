"""Evaluates a student at every image's own size: python -m semiovs_jax.evaluate --config=... --workdir=runs/voc92.

The reference evaluates one image at a time (`evaluate.py`, mode "original"). Here images share a few padded shapes,
and the student is told their true sizes, so that the logits of every pixel are those of the unpadded image.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags as absl_flags
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.datasets import DatasetInfo, load_dataset
from data_pipelines.pipeline import ValidationRecords, validation_records
from semiovs_jax import augment, metrics
from semiovs_jax.buckets import bucket_of, choose_buckets
from semiovs_jax.checkpoint import restore_weights
from semiovs_jax.metrics import Scores
from semiovs_jax.models import Functional
from semiovs_jax.recipe import make_student
from semiovs_jax.reporting.table import format_table, scores_record
from semiovs_jax.runtime import run_command
from semiovs_jax.sharding import batch_sharding, make_mesh, replicated

Batch = dict[str, np.ndarray]


class Evaluator:
    """Scores of a student on the validation records.

    Attributes:
      protocol: how images are evaluated and scores averaged, in a sentence.
    """

    protocol = (
        "every validation image whole and at its own size, single scale, no flip; IoU from one confusion matrix over "
        "all images; mIoU over all classes with absent classes as 0, and over present classes"
    )

    def __init__(
        self,
        student: Functional,
        records: ValidationRecords,
        dataset: DatasetInfo,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        num_threads: int = 2,
    ):
        """Chooses the padded shapes.

        Args:
          student: the student as a pure function.
          records: the validation images and labels.
          dataset: class count and ignore index.
          config: `config.eval` with keys batch_size (images at a time over all devices; rounded up to a multiple of
            their number) and max_shapes.
          mesh: the devices.
          num_threads: threads that decode ahead.
        """
        self._student = student
        self._records = records
        self._dataset = dataset
        self._mesh = mesh
        self._num_threads = num_threads
        self._batch_size = -(-config.batch_size // mesh.size) * mesh.size
        sizes = records.sizes()
        self._shapes = choose_buckets(sizes, config.max_shapes)
        self._groups = _group([bucket_of(size, self._shapes) for size in sizes], self._batch_size)
        self._confusion = jax.jit(self._count, out_shardings=replicated(mesh))

    def run(self, params: Any, batch_stats: Any) -> Scores:
        """Evaluates a student with these parameters and running statistics.

        Every process calls this; each decodes its rows of every batch.
        """
        total = np.zeros((self._dataset.num_classes, self._dataset.num_classes), np.int64)
        pending: list[jax.Array] = []
        for batch in self._batches():
            sharded = {
                name: jax.make_array_from_process_local_data(batch_sharding(self._mesh), array)
                for name, array in batch.items()
            }
            pending.append(self._confusion(params, batch_stats, sharded))
            if len(pending) > 1:  # one batch is computed while the next is decoded
                total += np.asarray(pending.pop(0))
        return metrics.scores(total + sum(np.asarray(counts, np.int64) for counts in pending))

    def _count(self, params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> jax.Array:
        image = augment.weak_view(batch["image"])
        logits, _ = self._student.apply(params, batch_stats, image, train=False, size=batch["size"])
        valid = batch["label"] != self._dataset.ignore_index
        return metrics.confusion_matrix(batch["label"], jnp.argmax(logits, -1), valid, self._dataset.num_classes)

    def _batches(self) -> Iterator[Batch]:
        """This process's rows of every batch, decoded one batch ahead."""
        rows = self._batch_size // jax.process_count()
        mine = slice(rows * jax.process_index(), rows * (jax.process_index() + 1))
        with ThreadPoolExecutor(self._num_threads) as pool:
            ahead: tuple[int, list[Future]] | None = None
            for bucket, indices in self._groups:
                current, ahead = ahead, (bucket, [pool.submit(self._records.__getitem__, i) for i in indices[mine]])
                if current is not None:
                    yield self._stack(*current, rows)
            if ahead is not None:
                yield self._stack(*ahead, rows)

    def _stack(self, bucket: int, records: list[Future], rows: int) -> Batch:
        """Puts records in the top left of their shape; the rest, and rows without a record, are ignored pixels."""
        shape = self._shapes[bucket]
        batch: Batch = {
            "image": np.zeros((rows, *shape, 3), np.uint8),
            "label": np.full((rows, *shape), self._dataset.ignore_index, np.uint8),
            "size": np.tile(np.array(shape, np.int32), (rows, 1)),
        }
        for row, future in enumerate(records):
            record = future.result()
            height, width = record["label"].shape
            batch["image"][row, :height, :width] = record["image"]
            batch["label"][row, :height, :width] = record["label"]
            batch["size"][row] = height, width
        return batch


def _group(buckets: list[int], batch_size: int) -> list[tuple[int, list[int]]]:
    """Batches of record indices that share a bucket, as (bucket, indices)."""
    groups = []
    for bucket in sorted(set(buckets)):
        indices = [i for i, other in enumerate(buckets) if other == bucket]
        groups += [(bucket, indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return groups


def main(flags: Any) -> None:
    """Evaluates the best (or latest) checkpoint in `flags.workdir` and prints the table."""
    config = flags.config
    mesh = make_mesh()
    dataset = load_dataset(config.data.dataset)
    student, params, batch_stats = Functional.create(nnx.eval_shape(lambda: make_student(config)))
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        {"params": params, "batch_stats": batch_stats},
    )
    restored = restore_weights(flags.workdir, weights, flags.which)
    evaluator = Evaluator(student, validation_records(config.data), dataset, config.eval, mesh)
    scores = evaluator.run(restored.state["params"], restored.state["batch_stats"])
    record = {"step": restored.meta["step"], **scores_record(scores, dataset.classes)}
    if jax.process_index() == 0:
        print(format_table(record, record, evaluator.protocol))


if __name__ == "__main__":
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    run_command(main)
