"""The report of one evaluation: numbers as JSON and CSV, the confusion matrix as a picture, and all on one page."""

from semiovs_jax.reporting.evaluation_report.checkpoint import OpenedCheckpoint, evaluate_checkpoint, open_checkpoint
from semiovs_jax.reporting.evaluation_report.files import Evaluated, write_evaluation

__all__ = ["Evaluated", "OpenedCheckpoint", "evaluate_checkpoint", "open_checkpoint", "write_evaluation"]
