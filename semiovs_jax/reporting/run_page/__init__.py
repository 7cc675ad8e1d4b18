"""The page of a run: what it did, its curves, scores and images, its data and config, and the commands that follow."""

from semiovs_jax.reporting.run_page.contents import Contents, OodLabels, Shown
from semiovs_jax.reporting.run_page.gather import gather
from semiovs_jax.reporting.run_page.page import format_page

__all__ = ["Contents", "OodLabels", "Shown", "format_page", "gather"]
