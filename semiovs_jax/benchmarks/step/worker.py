"""One side of the comparison of train steps, in a process of its own: ours, or one in PyTorch.

`semiovs_jax.benchmarks.step` starts it and calls the methods of `OurSide` or `TorchSide`, in the order in which they
are below. Weights and views pass through files of a folder: ours are those of the step in PyTorch, if there is one, and
its views are ours.
"""

import dataclasses
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semiovs_jax.benchmarks.memory import peak_host_bytes, reset_peak
from semiovs_jax.benchmarks.step.cases import (
    COMPILED,
    FIRST_STEP,
    OURS,
    PRECISIONS,
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    VIT_BACKBONE,
    Case,
)
from semiovs_jax.benchmarks.step.weights import read_weights, write_arrays, write_weights
from semiovs_jax.benchmarks.timing import Usage
from semiovs_jax.benchmarks.turns import serve
from semiovs_jax.runtime.command import tune_process

_NUM_CLASSES = 21  # of the configs in `step.cases`
_BACKBONES = {VIT_BACKBONE: "vit_b16"}  # names of PyTorch's that are not ours
_WEIGHTS, _VIEWS = "weights.npz", "views.npz"


class OurSide:
    """Our step."""

    def __init__(self) -> None:
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
        self._device = jax.devices()[0]
        self._baseline = peak_host_bytes()

    def describe(self) -> dict[str, Any]:
        """The device and the versions."""
        import jax
        import jaxlib

        found = {"platform": self._device.platform, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
        return found | {"device": _cpu() if self._device.platform == "cpu" else _gpu(self._device.device_kind)}

    def build(self, case: Mapping[str, Any], folder: str, device: str) -> int:
        """Makes the state, with the weights in `folder` if there are any, and writes the views to it.

        Returns:
          The images of a step, of all streams.
        """
        from semiovs_jax.benchmarks.step.ours import OurStep

        del device
        self._case = Case(**case)
        self._step = OurStep(self._case, read_weights(Path(folder) / _WEIGHTS))
        write_arrays(Path(folder) / _VIEWS, self._step.flat_views())
        return self._step.images

    def prepare(self, folder: str, whole: bool) -> dict[str, float]:
        """Compiles.

        Args:
          folder: of `build`.
          whole: whether the whole step is measured, too, or the update alone.

        Returns:
          The first loss, the FLOPs of an update, and the seconds to compile the whole step, or the update without it.
        """
        del folder
        self._parts = {"update": self._step.update} | ({"step": self._step.step} if whole else {})
        seconds = self._step.compile_update()
        loss = float(self._step.update())
        self._built = peak_host_bytes()
        reset_peak()
        self._step.update()
        self._step.synchronize()
        self._peak = peak_host_bytes()  # before the other program is there: a run has one
        if whole:
            seconds = self._step.compile_step()
            self._step.step()
            self._step.synchronize()
        return {"loss": loss, "flops": self._step.flops(), "compile_seconds": seconds}

    def measure(self, steps: int) -> dict[str, dict[str, float]]:
        """The cost of a number of updates alone, and of whole steps."""
        return {name: usage(run, self._step.synchronize, steps) for name, run in self._parts.items()}

    def trace(self, folder: str) -> None:
        """Writes a profile of an update, which XProf shows, to `folder`."""
        import jax

        with jax.profiler.trace(folder):
            self._step.update()
            self._step.synchronize()

    def finish(self) -> dict[str, float | None]:
        """Peaks of memory in bytes, what the compiler plans for an update, and the FLOPs per second of products."""
        from semiovs_jax.benchmarks.ceiling import jax_ceiling

        stats = self._device.memory_stats() or {}
        found = _peaks(self._baseline, self._built, self._peak) | {"device_bytes": stats.get("peak_bytes_in_use")}
        found["planned_bytes"] = self._step.planned_bytes()
        precision = PRECISIONS[self._case.precision]
        return found | {"ceiling": jax_ceiling(precision.dtype, precision.products)}


class TorchSide:
    """The step in PyTorch.

    Args:
      compiled: whether torch.compile compiles it.
    """

    def __init__(self, compiled: bool):
        import torch

        self._compiled = compiled
        if torch.cuda.is_available():
            torch.cuda.init()
        self._baseline = peak_host_bytes()

    def describe(self) -> dict[str, Any]:
        """The version."""
        import torch

        return {"torch": torch.__version__}

    def build(self, case: Mapping[str, Any], folder: str, device: str) -> None:
        """Makes the step on "cpu" or "cuda", and writes its weights to `folder`."""
        from semiovs_jax.benchmarks.step.pytorch.settings import Settings, published_constants
        from semiovs_jax.benchmarks.step.pytorch.steps import TorchStep

        self._case, self._device = Case(**case), device
        settings = Settings(
            method=self._case.method,
            ood=self._case.ood,
            backbone=_BACKBONES.get(self._case.backbone, self._case.backbone),
            num_classes=_NUM_CLASSES,
            batch_size=self._case.batch_size,
            crop_size=self._case.crop_size,
            device=device,
            precision=PRECISIONS[self._case.precision].torch,
            compiled=self._compiled,
        )
        constants = dataclasses.replace(
            published_constants(self._case.method),
            threshold=0.0,
            snapshot_threshold=0.0,
            maskclip_threshold=0.0,
            steps_per_epoch=STEPS_PER_EPOCH,
            total_steps=TOTAL_STEPS,
            first_step=FIRST_STEP,
        )
        self._step = TorchStep(settings, seed=0, constants=constants)
        write_weights(Path(folder) / _WEIGHTS, self._step)

    def prepare(self, folder: str, whole: bool) -> dict[str, float]:
        """Returns the first loss, and the seconds of that and of the first update, compilation included."""
        del whole
        with np.load(Path(folder) / _VIEWS) as file:
            self._views = self._step.place(dict(file))
        start = time.perf_counter()
        loss = self._step.loss(self._views)
        self._update()
        self._step.synchronize()
        seconds = time.perf_counter() - start
        self._update()
        self._step.synchronize()
        self._built = peak_host_bytes()
        reset_peak()
        return {"loss": loss, "compile_seconds": seconds}

    def measure(self, steps: int) -> dict[str, dict[str, float]]:
        """The cost of a number of updates."""
        return {"update": usage(self._update, self._step.synchronize, steps)}

    def trace(self, folder: str) -> None:
        """Writes a profile of an update, which chrome://tracing shows, to `folder`."""
        import torch

        with torch.profiler.profile() as profile:
            self._update()
            self._step.synchronize()
        Path(folder).mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(Path(folder) / "torch.json"))

    def finish(self) -> dict[str, float | None]:
        """Peaks of memory in bytes, and the FLOPs per second of matrix products."""
        import torch

        from semiovs_jax.benchmarks.ceiling import torch_ceiling

        on_device = torch.cuda.max_memory_allocated() if self._device == "cuda" else None
        found = _peaks(self._baseline, self._built, peak_host_bytes()) | {"device_bytes": on_device}
        return found | {"ceiling": torch_ceiling(PRECISIONS[self._case.precision].dtype, self._device)}

    def _update(self) -> None:
        self._step.update(self._views)


def usage(run: Callable[[], Any], synchronize: Callable[[], None], steps: int) -> dict[str, float]:
    """The cost of a number of calls, a `Usage` as plain data; waits for the device before and after them."""
    synchronize()
    start, cores = time.perf_counter(), time.process_time()
    for _ in range(steps):
        run()
    synchronize()
    return dataclasses.asdict(Usage(steps, time.perf_counter() - start, time.process_time() - cores))


def _peaks(baseline: int, built: int, peak: int) -> dict[str, float | None]:
    """Bytes on the host: with imports alone, at most until the first update was done, and at most in updates since."""
    return {"baseline_bytes": baseline, "built_bytes": built, "peak_bytes": peak}


def _gpu(name: str) -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return f"{name}, driver {driver}"


def _cpu() -> str:
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # another system than Linux on x86
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    tune_process()
    side = sys.argv[1]
    serve(OurSide if side == OURS else lambda: TorchSide(compiled=side == COMPILED))
