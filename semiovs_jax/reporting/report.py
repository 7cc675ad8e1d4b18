"""Everything the training loop reports: progress, metrics, plots, tables."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

import jax
import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.files import as_path, remove_abandoned_parts, replace_file, whole_file
from semiovs_jax.evaluation.metrics import Scores
from semiovs_jax.methods.table import Method
from semiovs_jax.reporting import curves, panels, run_page, table
from semiovs_jax.reporting.examples import draw_examples
from semiovs_jax.reporting.goodput import Goodput, format_shares
from semiovs_jax.reporting.metrics_log import MetricsLog
from semiovs_jax.reporting.progress import Clock, Progress
from semiovs_jax.reporting.speed import Speed, format_details
from semiovs_jax.reporting.summary import Summary, format_summary
from semiovs_jax.writers import RunFacts, Writers

# Shown beside the progress bar; everything else is in the files.
_HEADLINES = ("loss", "loss_x", "mask_ratio")

P = ParamSpec("P")


def _writing(method: Callable[Concatenate["Report", P], None]) -> Callable[Concatenate["Report", P], None]:
    """Raises an `InputError` with the file where the disk refuses to write."""

    @functools.wraps(method)
    def write(self: "Report", *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except OSError as error:
            raise InputError(
                f"{error.filename or self._workdir}: cannot be written ({error.strerror or error}); make room there or "
                "restore access, then run the same command, which continues after the newest checkpoint"
            ) from error

    return write


class Report:
    """Writes the reports of a run below `workdir`. Only process 0 writes.

        metrics.jsonl    a line for each logged step and each evaluation
        curves.png       losses, shares of confident pixels and mIoU over the steps
        panels/STEP.png  images, labels and predictions
        predictions.png  validation images that show every class, their ground truth and the last predictions
        report.html      the whole run on one page
        tensorboard/     scalars and panels, or what `writers` names
        summary.txt, result.json, table.txt

    A run that continues from a checkpoint continues these files. Their entries of later steps are removed.
    """

    def __init__(
        self,
        workdir: str | Path,
        dataset: DatasetInfo,
        *,
        total_steps: int,
        images_per_step: int,
        log_every_steps: int,
        restored_step: int = 0,
        log_digest: Mapping[str, int] | None = None,
        devices: Sequence[jax.Device] = (),
        flops_per_step: float | None = None,
        goodput: Goodput | None = None,
        writes: bool | None = None,
        writers: str = "tensorboard",
        config: Mapping[str, Any] | None = None,
    ):
        """Opens the files.

        Args:
          workdir: folder of the run; created if missing.
          dataset: class names and palette.
          total_steps: number of steps of the run.
          images_per_step: number of images of all streams, for the throughput.
          log_every_steps: interval of the steps whose metrics are read from the device.
          restored_step: number of steps that are done already.
          log_digest: of the metrics of these steps, see `MetricsLog`.
          devices: of the run, see `Speed`.
          flops_per_step: see `Speed`.
          goodput: time of this start by phase: logged steps have that since the one before, result.json has all of it.
          writes: whether this process writes; None for process 0 only.
          writers: see `config.train.writers`.
          config: every config value, nested, as plain data, for writers that show it.

        Raises:
          InputError: `workdir` is not writable, or the metrics are damaged.
        """
        self._writes = jax.process_index() == 0 if writes is None else writes
        if not self._writes:
            return
        self._workdir = as_path(workdir, "--workdir")
        self._dataset = dataset
        self._total_steps = total_steps
        self._speed = Speed(images_per_step, devices, flops_per_step)
        self._goodput = goodput
        self._method: Method | None = None
        self._summary = ""
        self._records_drawn: int | None = None
        self._log_every_steps = log_every_steps
        try:
            (self._workdir / "panels").mkdir(parents=True, exist_ok=True)
            remove_abandoned_parts(self._workdir)
            self._log = MetricsLog(self._workdir / "metrics.jsonl", restored_step, log_digest)
            self._writers = Writers(writers, RunFacts(self._workdir, restored_step, config or {}))
        except OSError as error:
            raise InputError(f"--workdir={workdir}: not writable ({error}); choose another folder") from error
        self._clock = Clock(total_steps)
        self._progress = Progress(total_steps, restored_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except InputError:
            if kind is None:  # otherwise the body's error has the cause
                raise

    @_writing
    def start(self, summary: Summary) -> None:
        """Prints the summary of the run."""
        if not self._writes:
            return
        self._method = summary.method
        self._summary = text = format_summary(summary)
        self._progress.write(text)
        (self._workdir / "summary.txt").write_text(text + "\n", encoding="utf-8")
        self._writers.add_text("summary", text, summary.restored_step or 0)

    @_writing
    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Records a step. Waits for the device only if the step is logged.

        Args:
          step: number of steps done, including this one.
          metrics: scalars on the device.
        """
        if not self._writes:
            return
        self._clock.tick(step)
        if step % self._log_every_steps and step != self._total_steps:
            return
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        speed = self._speed.measured(self._clock.steps_per_second(step)) | self._speed.memory()
        spent = {} if self._goodput is None else {"seconds": _rounded(self._goodput.seconds_since_last())}
        self._log.write("train", step, values | speed | spent)
        self._writers.add_scalars(_tagged("train", values | speed), step)
        headlines = {name: values[name] for name in _HEADLINES if name in values}
        details = format_details(speed, len(self._speed.devices))
        self._progress.show(step, headlines, speed["images_per_second"], self._clock.seconds_left(step), details)

    @_writing
    def evaluation(self, step: int, scores: Scores) -> None:
        """Records an evaluation after `step` and redraws the curves."""
        if not self._writes:
            return
        record = table.scores_record(scores, self._dataset.classes)
        self._log.write("eval", step, record)
        means = {name: record[name] for name in ("miou", "miou_present", "pixel_accuracy")}
        self._writers.add_scalars(_tagged("eval", means) | _tagged("iou", record["iou"]), step)
        best = table.best_of(self._evaluations())
        self._progress.write(
            f"step {step}: mIoU {100 * scores.mean_iou:.2f} %, best {100 * best['miou']:.2f} % at step {best['step']}"
        )
        self._draw_curves()
        self._clock.restart(step)

    @_writing
    def panel(self, step: int, columns: Mapping[str, Any]) -> None:
        """Draws a panel (see `panels.draw_panel`). Columns may be on the device."""
        if not self._writes:
            return
        picture = panels.draw_panel({title: np.asarray(value) for title, value in columns.items()}, self._dataset)
        with whole_file(self._workdir / "panels" / f"{step:06d}.png") as part:
            Image.fromarray(picture).save(part, format="png")
        self._writers.add_image("panel", picture, step)
        self._clock.restart(step)

    def log_digest(self) -> dict[str, int] | None:
        """Digest of the metrics so far, for a checkpoint; None if this process writes none."""
        return self._log.digest() if self._writes else None

    @_writing
    def finish(
        self, protocol: str, facts: Mapping[str, Any] | None = None, contents: run_page.Contents | None = None
    ) -> None:
        """Prints and writes the final table of the best and the last evaluation; writes curves, page and result.json.

        Args:
          protocol: the evaluation protocol in one sentence.
          facts: additional entries of result.json, plain data.
          contents: what the page of the run shows; None writes neither predictions.png nor report.html.
        """
        if not self._writes:
            return
        self._draw_curves()
        evaluations = self._evaluations()
        result = {"protocol": protocol, **(facts or {})}
        if evaluations:
            best, last = table.best_of(evaluations), evaluations[-1]
            columns = {f"best, step {best['step']}": best, f"last, step {last['step']}": last}
            text = table.format_table(columns, protocol)
            self._progress.write(text)
            (self._workdir / "table.txt").write_text(text + "\n", encoding="utf-8")
            for name, record in (("best", best), ("last", last)):
                result[name] = {key: value for key, value in record.items() if key != "event"}
            self._writers.finish(
                {f"{name}_{key}": result[name][key] for name in ("best", "last") for key in ("step", "miou")}
            )
        if self._goodput is not None:
            result["seconds"] = _rounded(self._goodput.seconds())
        if contents is not None:
            self._write_page(result, evaluations, contents)
        # Last, because a run with a result is finished.
        table.write_result(self._workdir / "result.json", result)
        self.close(finished=True)

    @_writing
    def close(self, finished: bool = False) -> None:
        """Closes the files and prints how the time was spent. `finish` and the end of a `with` block call it."""
        if not self._writes:
            return
        self._progress.close()
        self._log.close()
        self._writers.close(finished)
        if self._goodput is not None:
            self._progress.write(f"time of this start: {format_shares(self._goodput.seconds())}")
            self._goodput = None

    def _draw_curves(self) -> None:
        """Draws what the log holds, unless it is drawn: the last evaluation ends most runs."""
        if self._records_drawn != len(self._log.records):
            curves.draw_curves(self._log.records, self._workdir / "curves.png", self._method)
            self._records_drawn = len(self._log.records)

    def _write_page(
        self, result: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], contents: run_page.Contents
    ) -> None:
        if contents.shown is not None:
            examples = contents.shown.every_class
            title = f"prediction, step {self._total_steps}"
            found = {title: [example.prediction for example in examples]}
            picture = Image.fromarray(draw_examples(examples, found, self._dataset))
            with whole_file(self._workdir / "predictions.png") as part:
                picture.save(part, format="png")
        page = run_page.format_page(
            self._workdir,
            self._dataset,
            result,
            evaluations,
            contents,
            summary=self._summary,
            curves_png=(self._workdir / "curves.png").read_bytes(),
        )
        replace_file(self._workdir / "report.html", page)
        self._progress.write(f"wrote {self._workdir / 'report.html'}; open it in a browser")

    def _evaluations(self) -> list[dict[str, Any]]:
        return [record for record in self._log.records if record["event"] == "eval"]


def _tagged(prefix: str, values: Mapping[str, float | None]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: rounded for phase, value in seconds.items() if (rounded := round(value, 3))}
