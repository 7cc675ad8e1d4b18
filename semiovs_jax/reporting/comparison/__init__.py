"""Runs beside each other: a table, the differences of their configs, and pictures of curves and predictions."""

from semiovs_jax.reporting.comparison.picture import draw_comparison
from semiovs_jax.reporting.comparison.pictures import draw_pictures
from semiovs_jax.reporting.comparison.read import ComparedRun, read_runs
from semiovs_jax.reporting.comparison.spread import EVALUATIONS, Spread, spread_of
from semiovs_jax.reporting.comparison.tables import format_differences, format_runs, warnings

__all__ = [
    "EVALUATIONS",
    "ComparedRun",
    "Spread",
    "draw_comparison",
    "draw_pictures",
    "format_differences",
    "format_runs",
    "read_runs",
    "spread_of",
    "warnings",
]
