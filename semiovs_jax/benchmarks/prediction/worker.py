"""One side of the comparison of predicting, in a process of its own: `OurSide` or `TorchSide`.

Both have the same weights, random ones that PyTorch has made, and pass them through a file.
"""

import abc
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from semiovs_jax.benchmarks.memory import peak_host_bytes, reset_peak
from semiovs_jax.benchmarks.prediction.images import draw_images, draw_sizes
from semiovs_jax.benchmarks.timing import Usage, core_seconds
from semiovs_jax.benchmarks.turns import serve
from semiovs_jax.runtime.command import tune_process

NUM_CLASSES = 21
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

Predictions = list[tuple[np.ndarray, np.ndarray]]  # label uint8 [H, W], confidence float32 [H, W] of each image


class Side(abc.ABC):
    """What both sides share."""

    def build(self, weights: str, backbone: str, sizes: int, longest: int) -> None:
        """Loads the model; see `draw_sizes`."""
        self._sizes = draw_sizes(sizes, longest)
        self.load(Path(weights), backbone)

    def measure(self, first: int, last: int) -> dict[str, Any]:
        """Predicts images; returns the fields of `Usage`, of images, and the peak of memory meanwhile, in bytes."""
        images = draw_images(first, last, self._sizes)
        reset_peak()
        start, cores = time.perf_counter(), core_seconds()
        self.predict(images)
        usage = Usage(len(images), time.perf_counter() - start, core_seconds() - cores)
        return dataclasses.asdict(usage) | {"peak_bytes": peak_host_bytes()}

    def save(self, count: int, path: str) -> None:
        """Saves the predictions of the first images, one of each size."""
        found = self.predict(draw_images(0, count, self._sizes))
        arrays: dict[str, Any] = {}
        for index, (label, confidence) in enumerate(found):
            arrays |= {f"label{index}": label, f"confidence{index}": confidence}
        np.savez(path, **arrays)

    def compilations(self) -> int:
        """Programs compiled so far."""
        return 0

    @abc.abstractmethod
    def load(self, weights: Path, backbone: str) -> None:
        """Loads or makes the weights."""

    @abc.abstractmethod
    def predict(self, images: list[np.ndarray]) -> Predictions:
        """Predicts uint8 images [H, W, 3]."""


class OurSide(Side):
    """`semiovs_jax.load(...).predict`, without a run."""

    def load(self, weights: Path, backbone: str) -> None:
        """Converts the weights."""
        import jax

        from data_pipelines.errors import Faults
        from semiovs_jax import experiment
        from semiovs_jax.evaluation.inference import Inference
        from semiovs_jax.models import Functional
        from semiovs_jax.models.deeplab.params import convert_student
        from semiovs_jax.prediction.predictor import Predictor
        from semiovs_jax.runtime.config_files import load_config
        from semiovs_jax.runtime.sharding import make_mesh
        from semiovs_jax.weights.state_dicts import read_state_dict

        config, faults = load_config("configs/voc.py:92,supervised").unlock(), Faults()
        config.model.update(backbone=backbone, random_init=True)
        _, _, student = experiment.settle_names(config, faults).usable(faults)
        function, params, batch_stats = Functional.create(student, config.model.matmul_precision)
        params, batch_stats = jax.device_put(convert_student(read_state_dict(weights), params, batch_stats))
        inference = Inference.create(function, config.eval)
        mesh = make_mesh(jax.devices()[:1])
        self._predictor = Predictor(
            inference, params, batch_stats, mesh, config.eval, size_multiple=student.size_multiple
        )

    def predict(self, images: list[np.ndarray]) -> Predictions:
        """In batches of few padded shapes."""
        return [(found.label, found.confidence) for found in self._predictor.predict(images)]

    def compilations(self) -> int:
        """Of padded shapes."""
        return self._predictor.compilations


class TorchSide(Side):
    """A loop over the images, each at its own size."""

    def load(self, weights: Path, backbone: str) -> None:
        """Makes random weights and writes them."""
        import torch
        from safetensors.torch import save_file

        from semiovs_jax.benchmarks.step.pytorch.deeplab import STAGE_SIZES, DeepLabV3Plus

        torch.manual_seed(0)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = DeepLabV3Plus(NUM_CLASSES, STAGE_SIZES[backbone]).eval()
        save_file(self._network.state_dict(), weights)
        torch.nn.utils.convert_conv2d_weight_memory_format(self._network.to(self._device), torch.channels_last)

    def predict(self, images: list[np.ndarray]) -> Predictions:
        """One by one."""
        import torch

        mean, std = (torch.tensor(values, device=self._device)[:, None, None] for values in (_MEAN, _STD))
        found: Predictions = []
        with torch.inference_mode():
            for image in images:
                planes = torch.from_numpy(image).to(self._device).permute(2, 0, 1).float() / 255
                batch = ((planes - mean) / std)[None].contiguous(memory_format=torch.channels_last)
                confidence, label = self._network(batch).softmax(1).max(1)
                found.append((label[0].byte().cpu().numpy(), confidence[0].cpu().numpy()))
        return found


if __name__ == "__main__":
    tune_process()
    serve({"ours": OurSide, "torch": TorchSide}[sys.argv[1]])
