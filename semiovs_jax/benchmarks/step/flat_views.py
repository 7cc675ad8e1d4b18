"""The views of a step as arrays by name, which a step in another framework can read from a file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from semiovs_jax.labelers.snapshots import SnapshotDraw
    from semiovs_jax.train_step import Labels
    from semiovs_jax.views import Views

IGNORE_INDEX = 255


def flatten_views(views: "Views", labels: "Labels", draw: "SnapshotDraw | None" = None) -> dict[str, np.ndarray]:
    """The arrays of a step's views, NHWC as in `Views`.

    The names are the paths in `Views`: "weak/STREAM", "s1/STREAM", "s2/STREAM", "valid/STREAM", "label", "box1",
    "box2", "weak_masks/LEVEL" and "strong_masks/STREAM/LEVEL". Masks stay interleaved (see `sharding.interleave`).

    Args:
      views: of a step.
      labels: of its labelers. Those of the OVS become "ovs/label", uint8 [N, H, W] with `IGNORE_INDEX` where they are
        invalid, and "ovs/confidence", float [N, H, W]. All others are left out: the steps compute them.
      draw: PrevMatch's snapshots of this step. Those in use become "snapshots/slots", int [used], and
        "snapshots/weights", float [used].
    """
    fields = {name: getattr(views, name) for name in views.__dataclass_fields__}
    arrays = dict(_leaves(fields))
    if (found := labels.get(("ovs", "ood"))) is not None:
        arrays["ovs/label"] = np.where(found.valid, found.label, IGNORE_INDEX).astype(np.uint8)
        arrays["ovs/confidence"] = np.asarray(found.confidence)
    if draw is not None:
        used = int(draw.used)
        arrays["snapshots/slots"] = np.asarray(draw.slots)[:used]
        arrays["snapshots/weights"] = np.asarray(draw.weights)[:used]
    return arrays


def deinterleaved(rows: np.ndarray, count: int) -> np.ndarray:
    """Sorts interleaved rows [kN, ...] of k = `count` batches by batch: all of the first, all of the second, ..."""
    by_image = rows.reshape(-1, count, *rows.shape[1:])
    return by_image.swapaxes(0, 1).reshape(rows.shape)


def _leaves(tree: Any, path: str = "") -> list[tuple[str, np.ndarray]]:
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, tuple):
        items = list(enumerate(tree))
    else:
        return [(path, np.asarray(tree))]
    return [leaf for key, value in items for leaf in _leaves(value, f"{path}/{key}" if path else str(key))]
