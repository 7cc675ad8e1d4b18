"""Reports of a run: start summary, progress, metrics, TensorBoard, panels, curves, final table, pictures and page."""

from semiovs_jax.reporting.report import Report
from semiovs_jax.reporting.summary import Summary

__all__ = ["Report", "Summary"]
