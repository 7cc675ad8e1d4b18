"""The summary that is printed before the first step."""

import dataclasses
from collections.abc import Mapping

import jax

from semiovs_jax.methods.table import Method, Term, constant


@dataclasses.dataclass(frozen=True)
class Summary:
    """Facts about a run before its first step.

    Attributes:
      records: number of records by stream name, and further counts such as "validation".
      batch_size: number of images per stream and step, over all devices.
      crop_size: side of the training crops, in pixels.
      steps_per_epoch: number of steps in one pass over the unlabeled stream (the labeled one without).
      total_steps: number of steps of the run.
      method: the table of terms.
      parameters: number of the student's parameters.
      mesh: the devices.
      bytes_per_device: estimated memory of the train step on one device; None if unknown.
      restored_step: the step of the checkpoint that the run continues from; None for a new run.
    """

    records: Mapping[str, int]
    batch_size: int
    crop_size: int
    steps_per_epoch: int
    total_steps: int
    method: Method
    parameters: int
    mesh: jax.sharding.Mesh
    bytes_per_device: int | None = None
    restored_step: int | None = None


def format_summary(summary: Summary) -> str:
    """Formats the summary as text in two columns."""
    rows = [
        *_under("data", [f"{count:>9,} {name}" for name, count in summary.records.items()]),
        ("batch", f"{summary.batch_size} images a stream, crops of {summary.crop_size} px"),
        ("steps", f"{summary.total_steps:,} = {_epochs(summary)}"),
        *_under("method", _method_lines(summary.method)),
        ("parameters", f"{summary.parameters:,}"),
        ("devices", _devices(summary.mesh)),
        ("mesh", ", ".join(f"{axis}={size}" for axis, size in summary.mesh.shape.items())),
        ("memory", _memory(summary.bytes_per_device)),
        ("checkpoint", _checkpoint(summary.restored_step)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _under(name: str, lines: list[str]) -> list[tuple[str, str]]:
    return [(name if i == 0 else "", line) for i, line in enumerate(lines)]


def _epochs(summary: Summary) -> str:
    epochs = summary.total_steps / summary.steps_per_epoch
    stream = "unlabeled" if "unlabeled" in summary.method.streams else "labeled"
    return f"{epochs:,.1f} epochs of {summary.steps_per_epoch:,} (passes over the {stream} stream)"


def _method_lines(method: Method) -> list[str]:
    if not method.terms:
        return [f"{method.name}: supervised loss alone"]
    lines = [f"{method.name}: the mean of these losses by their weights"]
    lines.append("  1     x supervised")
    lines += [_term_line(term, method) for term in method.terms if term.normalized]
    if added := [_term_line(term, method) for term in method.terms if not term.normalized]:
        lines += ["and beside that mean", *added]
    return lines


def _term_line(term: Term, method: Method) -> str:
    when = "" if term.schedule is constant else f" x {term.schedule.__name__}"
    labels = f"labeled by {term.labeler}, {_gate(term, term.labeler, method)}"
    if term.mixed and term.pasted_labeler != term.labeler:
        labels += f"; pasted pixels by {term.pasted_labeler}, {_gate(term, term.pasted_labeler, method)}"
    return f"  {term.weight:<5.3g}{when} x {term.name}: {term.prediction} of {term.stream}, {labels}"


def _gate(term: Term, labeler: str, method: Method) -> str:
    """How a labeler's confidence counts in a term, see `losses.gated_mean`."""
    least = method.least_confidence(term, labeler)
    if term.gate == "pixelavg":
        return "images weighed by their mean confidence"
    return f"{term.gate} confidence >= {least:g}" if least > 0 else "every pixel"


def _devices(mesh: jax.sharding.Mesh) -> str:
    devices = mesh.devices.flatten()
    processes = len({device.process_index for device in devices})
    plural = "es" if processes > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} in {processes} process{plural}"


def _memory(bytes_per_device: int | None) -> str:
    if bytes_per_device is None:
        return "not estimated"
    return f"about {bytes_per_device / 2**30:.2f} GiB a device in the train step"


def _checkpoint(restored_step: int | None) -> str:
    return "none: a fresh start" if restored_step is None else f"continues after step {restored_step:,}"
