"""Runs beside each other as text."""

from collections.abc import Iterator, Mapping, Sequence

from semiovs_jax.reporting.comparison.read import ComparedRun, groups_of_seeds
from semiovs_jax.reporting.comparison.spread import spread_of

_NONE = "-"
_HEADER = ("run", "method", "steps", "best mIoU, %", "at step", "last mIoU, %", "at step", "last pixel accuracy, %")
_GROUP_HEADER = ("runs that differ in the seed alone", "method", "n", "best mIoU, %", "last mIoU, %")
_VAL_DIGESTS = ("data.val_split", "data.dataset")


def format_runs(runs: Sequence[ComparedRun]) -> str:
    """A row for each run, then mean and standard deviation of runs that differ in the seed alone, then protocols."""
    blocks = [_columns([_HEADER, *map(_run_row, runs)])]
    if groups := [group for group in groups_of_seeds(runs) if len(group) > 1]:
        blocks.append(_columns([_GROUP_HEADER, *map(_group_row, groups)]))
    protocols = _by_value({run.name: run.protocol for run in runs})
    for protocol, names in protocols.items():
        blocks.append(f"protocol{f' of {_listed(names)}' if len(protocols) > 1 else ''}: {protocol}")
    return "\n\n".join(blocks)


def format_differences(runs: Sequence[ComparedRun]) -> str:
    """A row for each config key whose value differs, with the value of each run."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    shown = {key: [repr(run.config[key]) if key in run.config else "not set" for run in runs] for key in keys}
    rows = [(key, *values) for key, values in shown.items() if len(set(values)) > 1]
    if not rows:
        return "the configs do not differ"
    return _columns([("config key", *(run.name for run in runs)), *rows])


def warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """Why the scores of the runs should not be compared: protocols, validation images or classes, lengths."""
    return [*_protocol_warnings(runs), *_split_warnings(runs), *_length_warnings(runs)]


def _protocol_warnings(runs: Sequence[ComparedRun]) -> Iterator[str]:
    protocols = _by_value({run.name: run.protocol for run in runs})
    if len(protocols) > 1:
        groups = " | ".join(map(_listed, protocols.values()))
        yield (
            f"the runs are evaluated by {len(protocols)} protocols ({groups}), so their mIoU cannot be compared; "
            "evaluate them by one: python -m semiovs_jax.evaluate --workdir=RUN with the same --config.eval.window, "
            "stride, short_side, scales and flip"
        )


def _split_warnings(runs: Sequence[ComparedRun]) -> Iterator[str]:
    for key in _VAL_DIGESTS:
        found = {run.name: _content(run, key) for run in runs}
        if all(key in run.digests for run in runs):
            found = {run.name: run.digests[key] for run in runs}
        if len(contents := _by_value(found)) > 1:
            groups = " | ".join(map(_listed, contents.values()))
            yield f"config.{key} differs ({groups}): the runs are evaluated on other images or classes; compare others"


def _content(run: ComparedRun, key: str) -> str:
    """What is known without a digest."""
    return f"{run.config['data.root']} {run.config[key]}" if key == "data.val_split" else str(run.config[key])


def _length_warnings(runs: Sequence[ComparedRun]) -> Iterator[str]:
    for run in runs:
        step = run.last["step"] if run.last else 0
        if run.steps and step < run.steps:
            yield (
                f"{run.name}: its last evaluation is at step {step} of {run.steps}; the command that started the run "
                "continues it"
            )


def _run_row(run: ComparedRun) -> tuple[str, ...]:
    best, last = run.best, run.last
    scores = [(_percent(entry["miou"]), str(entry["step"])) if entry else (_NONE, _NONE) for entry in (best, last)]
    accuracy = _percent(last["pixel_accuracy"]) if last else _NONE
    return run.name, run.method, str(run.steps or _NONE), *scores[0], *scores[1], accuracy


def _group_row(group: Sequence[ComparedRun]) -> tuple[str, ...]:
    return (
        _listed([run.name for run in group]),
        group[0].method,
        str(len(group)),
        _spread(group, "best"),
        _spread(group, "last"),
    )


def _spread(group: Sequence[ComparedRun], evaluation: str) -> str:
    """Mean and sample standard deviation of the mIoU; n where runs have none yet."""
    spread = spread_of(group, evaluation)
    if spread.mean is None or spread.std is None:
        return _NONE
    left_out = f" (n={spread.n})" if spread.n < len(group) else ""
    return f"{_percent(spread.mean)} ± {_percent(spread.std)}{left_out}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that have each value."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
