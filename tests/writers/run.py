"""A run in two starts, of which the first is killed, as a report writes it."""

from pathlib import Path

import numpy as np

from semiovs_jax.writers import RunFacts, Writers

CONFIG = {"seed": 7, "data": {"crop_size": 33, "scale_range": [0.5, 2.0]}}


def write_run(workdir: Path, chosen: str) -> None:
    """Steps 1 to 3, then again from 2: the checkpoint was that of step 1."""
    for after_step, last, finished in ((0, 3, False), (1, 4, True)):
        writers = Writers(chosen, RunFacts(workdir, after_step, CONFIG))
        writers.add_text("summary", f"continues after {after_step}", after_step)
        for step in range(after_step + 1, last + 1):
            writers.add_scalars({"train/loss": 1 / step, "train/mfu": float("nan")}, step)
            writers.add_image("panel", np.full((20, 30, 3), 10 * step, np.uint8), step)
            writers.add_scalars({"eval/miou": step / 10, "iou/potted (plant), big": 0.5}, step)
        if finished:
            writers.finish({"best_miou": 0.4, "best_step": 4})
        assert set(writers.open) == set(chosen.split(","))  # none was left out
        writers.close(finished)
