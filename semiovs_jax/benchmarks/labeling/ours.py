"""A worker that labels images with this project's code; see `labeling.worker`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from semiovs_jax.benchmarks.labeling import models
from semiovs_jax.benchmarks.labeling.job import measure_job
from semiovs_jax.benchmarks.labeling.worker import LabelingWorker, Task
from semiovs_jax.benchmarks.turns import serve
from semiovs_jax.ovs.sed import Sed, label_probabilities
from semiovs_jax.runtime.command import tune_process
from semiovs_jax.weights.state_dicts import read_state_dict


class OurLabeling(LabelingWorker):
    """Labels as the labeling job does: one compiled function, which gets the true sizes of the images."""

    def load(self, task: Task) -> None:
        """Converts the weights, or draws random ones if there is no file."""
        text, images = task.arrays()
        self._labeler = labeler = models.make_labeler(
            task.architecture(),
            text,
            read_state_dict(task.weights) if task.weights.exists() else None,
            image_size=images.shape[1],
            precision=models.PRECISIONS[task.precision],
            class_chunk=task.class_chunk,
            top_k=task.top_k,
        )
        height, width = task.label_size

        def label(weights: Any, image: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
            if isinstance(labeler, Sed):  # `Sed.label`, with the number of concepts
                planes = labeler.probabilities(weights, image)
                kept: jax.Array | None = jnp.count_nonzero(planes.max((2, 3))) / len(image)
                found = label_probabilities(planes, labeler.class_of_concept, (height, width), size=size)
            else:
                kept = None
                found = labeler.label(weights, image, label_size=(height, width), size=size)
            return found.label, found.confidence, kept

        self._label = jax.jit(label)
        sizes = np.full((len(images), 2), (height, width), np.int32)
        self._inputs = jax.device_put((labeler.weights, images, sizes))

    def run(self) -> tuple[jax.Array, jax.Array]:
        """Labels the batch."""
        label, confidence, _ = jax.block_until_ready(self._label(*self._inputs))
        return label, confidence

    def kept(self) -> float | None:
        """Concepts of an image that were not pruned, on average; None for MaskCLIP."""
        kept = self._label(*self._inputs)[2]
        return None if kept is None else float(kept)

    def job(self, images: int, batch_size: int, num_threads: int) -> dict[str, float]:
        """See `measure_job`."""
        return measure_job(self._labeler, images, batch_size, num_threads)

    def flops(self, **task: Any) -> float:
        """FLOPs of the network for one image of a `Task`; see `models.flops`."""
        self.load(Task(**task))
        return models.flops(self._labeler)

    def device(self) -> str:
        """Name of the device."""
        return jax.devices()[0].device_kind

    def to_host(self, array: Any) -> np.ndarray:
        """Copies a result."""
        return np.asarray(array)

    def peak_device_bytes(self) -> int | None:
        """XLA's own count."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    tune_process()
    serve(OurLabeling)
