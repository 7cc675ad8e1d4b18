"""The part that workers of both sides share: a labeler that labels one batch of images again and again.

It imports no framework, so that a worker's memory is that of its own framework. A model is a folder:

    architecture.json     see `labeling.models`
    weights.safetensors   published names; may be missing
    text.npy              embeddings of the concepts
    images.npy            float32 [N, S, S, 3] in 0..255
"""

import abc
import contextlib
import ctypes
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from semiovs_jax.benchmarks.memory import peak_host_bytes
from semiovs_jax.benchmarks.timing import repeat


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        folder: Folder of the model.
        batch_size: Images in the batch.
        precision: Key of `labelers.PRECISIONS`.
        top_k: Concepts that each pixel keeps on SED's fast path; 0 for the exact path, and for MaskCLIP.
        class_chunk: Concepts that our SED computes at a time; 0 for all.
        label_size: (height, width) of the labels.
        compiled: Whether PyTorch uses `torch.compile`.
        autocast: Whether PyTorch computes in bfloat16 by autocast; else its weights are bfloat16, too.
    """

    folder: str
    batch_size: int
    precision: str
    top_k: int
    class_chunk: int
    label_size: tuple[int, int]
    compiled: bool = False
    autocast: bool = False

    def architecture(self) -> dict[str, Any]:
        """Reads the model's architecture."""
        return json.loads((Path(self.folder) / "architecture.json").read_text(encoding="ascii"))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads the embeddings and the images of the batch."""
        folder = Path(self.folder)
        return np.load(folder / "text.npy"), np.load(folder / "images.npy")[: self.batch_size]

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return Path(self.folder) / "weights.safetensors"


class LabelingWorker(abc.ABC):
    """A worker of `turns`."""

    def prepare(self, **task: Any) -> float:
        """Loads a `Task` and labels its batch once; returns the seconds of this first run, compilation included."""
        self.load(Task(**task))
        _forget_peak()
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def label(self, path: str) -> None:
        """Labels the batch and saves `label` and `confidence`, [N, H, W]."""
        label, confidence = self.run()
        np.savez(path, label=self.to_host(label), confidence=self.to_host(confidence))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Labels the batch once or more, for at least `seconds`; returns the fields of `Usage`."""
        return dataclasses.asdict(repeat(self.run, seconds))

    def peaks(self) -> dict[str, int | None]:
        """Peak memory in bytes since the model was loaded: of this process, and of the GPU (None on the CPU)."""
        return {"host": peak_host_bytes(), "device": self.peak_device_bytes()}

    @abc.abstractmethod
    def load(self, task: Task) -> None:
        """Loads the model and the batch."""

    @abc.abstractmethod
    def run(self) -> tuple[Any, Any]:
        """Labels the batch and waits for the result: labels and confidences, on the device."""

    @abc.abstractmethod
    def to_host(self, array: Any) -> np.ndarray:
        """Copies a result."""

    @abc.abstractmethod
    def peak_device_bytes(self) -> int | None:
        """Peak memory of the GPU's arrays; None on the CPU."""


def _forget_peak() -> None:
    """Restarts the peak of `peak_host_bytes`, on Linux: reading weights may take more memory than labeling."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what reading has freed
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
