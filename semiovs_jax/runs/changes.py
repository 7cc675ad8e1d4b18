"""Compares a config with the one that a workdir belongs to.

Three tables decide: keys that may change, paths that may move because the digest of their content is compared, and keys
of earlier versions.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from semiovs_jax.runtime.config_keys import flat

# They change no batch, no update and no score.
MAY_CHANGE = frozenset(
    {
        "data.make",
        "data.max_bad_records",
        "data.num_threads",
        "data.num_workers",
        "data.prefetch",
        "data.stall_seconds",
        "eval.batch_size",
        "eval.max_shapes",
        "ovs.batch_size",
        "train.checkpoint_every_steps",
        "train.fsdp",
        "train.log_every_steps",
        "train.max_bad_steps",
        "train.panel_images",
        "train.profile_steps",
        "train.writers",
    }
)

# The length of a run: it may grow.
LENGTH = frozenset({"train.epochs", "train.steps"})

# Paths, with the digests of all that is read there (see `digests`).
PATHS = {
    "data.dataset": ("data.dataset",),
    "data.ood_root": ("data.ood_root",),
    "data.root": ("data.labeled_split", "data.unlabeled_split", "data.val_split"),
    "clip.vocabulary": ("clip.vocabulary",),
    "clip.weights": ("clip.weights",),
    "model.weights": ("model.weights",),
    "ovs.labels_dir": ("ovs.labels_dir",),
    "ovs.templates": ("ovs.vocabulary",),
    "ovs.vocabulary": ("ovs.vocabulary",),
    "ovs.weights": ("ovs.weights",),
}

# Sections and values that earlier versions had under other names, and keys that they lacked, with what they did.
_RENAMED = {"method.bank.": "method.snapshots.", "method.dense_clip.": "method.maskclip."}
_RENAMED_VALUES = {
    ("ovs.name", "dense_clip"): "maskclip",
    ("model.remat", False): "none",
    ("model.remat", True): "blocks",
}
_ADDED = {
    "data.ood_min_foreground": 0.0,
    "data.ood_repeat_threshold": 0.0,
    "data.scaled_decode": False,
    "eval.flip": False,
    "eval.scales": [1.0],
    "clip.matmul_precision": "default",
    "model.matmul_precision": "default",
    "ovs.matmul_precision": "default",
    "train.fsdp": 1,
    "train.profile_steps": [0, 0],
    "train.writers": "tensorboard",
}

_ABSENT = "not set"


class Run(NamedTuple):
    """What is compared of a run.

    Attributes:
      config: nested, as JSON keeps it.
      digests: digests of its data and weights by config key, see `digests`; those that are known.
      steps_per_epoch: None if unknown.
    """

    config: Mapping[str, Any]
    digests: Mapping[str, str]
    steps_per_epoch: int | None = None

    @property
    def steps(self) -> int | None:
        """Length of the run; None if its epochs have an unknown length."""
        train = self.config["train"]
        if train["steps"]:
            return train["steps"]
        return self.steps_per_epoch and train["epochs"] * self.steps_per_epoch


def changed_keys(was: Mapping[str, Any], is_: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(old value, new value) of the keys that differ between two nested configs, by dotted key."""
    old, new = current_keys(was), current_keys(is_)
    keys = [*old, *(key for key in new if key not in old)]
    pairs = {key: (old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def refusals(was: Run, is_: Run) -> list[str]:
    """One line for each difference for which a run must not be continued."""
    changed = changed_keys(was.config, is_.config)
    lines = []
    for key, (old, new) in changed.items():
        if key in MAY_CHANGE or (key in LENGTH and _grows(was, is_)) or _moved(key, was.digests, is_.digests):
            continue
        reason = ": a run may become longer, not shorter" if key in LENGTH else ""
        lines.append(f"config.{key} was {_shown(old)}, is {_shown(new)}{reason}")
    return lines + [
        f"config.{key}={_value(is_.config, key)!r}: its content has changed (sha256 was {old[:8]}, is {new[:8]})"
        for key, old, new in _other_contents(was.digests, is_.digests)
        if key not in changed or key in PATHS
    ]


def _grows(was: Run, is_: Run) -> bool:
    """Whether the new length is known to be at least the old one."""
    if was.steps is not None and is_.steps is not None:
        return is_.steps >= was.steps
    old, new = was.config["train"], is_.config["train"]
    return not old["steps"] and not new["steps"] and new["epochs"] >= old["epochs"]


def _moved(key: str, was: Mapping[str, str], is_: Mapping[str, str]) -> bool:
    """Whether the key is a path whose content both runs know; `_other_contents` compares it."""
    old, new = ({name for name in PATHS.get(key, ()) if name in digests} for digests in (was, is_))
    return bool(old) and old == new


def _other_contents(was: Mapping[str, str], is_: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for key in was.keys() & is_.keys():
        if was[key] != is_[key]:
            yield key, was[key], is_[key]


def current_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a nested config by dotted key, in the names of today; keys that it lacks as they were then."""
    found: dict[str, Any] = dict(_ADDED)
    for key, value in flat(config):
        for old, new in _RENAMED.items():
            key = key.replace(old, new) if key.startswith(old) else key
        found[key] = _RENAMED_VALUES.get((key, value), value) if isinstance(value, str | bool) else value
    return found


def _shown(value: Any) -> str:
    return value if value is _ABSENT else repr(value)


def _value(config: Mapping[str, Any], key: str) -> Any:
    return dict(flat(config)).get(key, "")
