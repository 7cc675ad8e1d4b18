"""A picture of a confusion matrix."""

import io
from collections.abc import Sequence

import numpy as np

_CELL = 0.31  # inches; large enough for two digits
_DPI = 110
_LEAST_SHOWN = 0.005  # a smaller share has no number


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Each row's shares: float64 [K, K] from int [K, K]; NaN in rows without pixels."""
    with np.errstate(invalid="ignore"):
        return confusion / confusion.sum(1, keepdims=True)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draws the shares of each row, in percent. A row without pixels is gray.

    Args:
      confusion: int [K, K], rows by true class.
      classes: K names.

    Returns:
      A PNG file.
    """
    import matplotlib
    from matplotlib.figure import Figure  # half a second

    shares = row_shares(confusion)
    side = _CELL * len(classes)
    figure = Figure(figsize=(side + 2.6, side + 1.9), layout="constrained", dpi=_DPI)
    axes = figure.subplots()
    colors = matplotlib.colormaps["Blues"].with_extremes(bad="0.88")
    # Small shares are what a reader looks for: the root shows them.
    axes.imshow(np.sqrt(shares), cmap=colors, vmin=0, vmax=1, interpolation="nearest")
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, classes, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("share of each true class, %", fontsize=10)
    axes.set_xticks(np.arange(-0.5, len(classes)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(classes)), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(shares >= _LEAST_SHOWN):
        share = shares[row, column]
        ink = "white" if share > 0.4 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
