"""docs/own_data.ipynb: kept without outputs, and run from its first cell to its last on a few images and steps."""

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from tests.compilation import FAST_COMPILATION

NOTEBOOK = Path(__file__).parents[1] / "docs" / "own_data.ipynb"
PARAMETERS = """
FOLDER, RUN, STEPS = "own_data", "runs/own_data", 4
IMAGES = {"labeled": 4, "unlabeled": 8, "val": 4, "ood": 4, "new": 2}
"""


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def text(cell: NotebookNode, stream: str = "stdout") -> str:
    """What a cell prints. On a slow machine stderr has progress bars, which end without a new line."""
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    return "".join(output.text for output in streams if output.name == stream)


def pictures(cell: NotebookNode) -> list[np.ndarray]:
    """The pictures that a cell shows, uint8 [H, W, 3]."""
    found = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def test_it_is_kept_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") for cell in cells].count(["parameters"]) == 1
    assert not [cell.source for cell in cells if cell.outputs or cell.execution_count is not None]


@pytest.mark.slow
def test_a_reader_sees_data_labels_scores_and_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("XLA_FLAGS", FAST_COMPILATION)
    notebook = read()
    next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])).source = PARAMETERS
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.source.splitlines()[0]: cell for cell in notebook.cells if cell.cell_type == "code"}

    checked = text(cells["print(semiovs_jax.check_data(config))"]).splitlines()
    assert (checked[0], checked[-1]) == ("own shapes: 9 classes, ignore index 255", "usable")
    assert "4 images, 4 labeled now, 0 unreadable" in text(cells["report = semiovs_jax.label(config)"])
    labels, predictions = cells["import matplotlib.pyplot as plt"], cells["model = semiovs_jax.load(RUN)"]
    for cell in (labels, predictions):
        (picture,) = pictures(cell)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000  # photographs, not blank axes
    progress = text(cells["semiovs_jax.train(config, RUN)"], "stderr")
    assert [f"step {step}/4: " in progress for step in range(1, 5)] == [True] * 4
    assert len(pictures(cells["from IPython import display"])) == 1
    table = [line.split() for line in text(cells["found = semiovs_jax.evaluate(RUN)"]).splitlines()]
    rows = [row for row in table if row and row[0] in ("background", "circle", "arrow", "mIoU,")]
    assert len(rows) == 4
    assert all(row[-1] == "absent" or 0 <= float(row[1 if row[0] != "mIoU," else 2]) <= 100 for row in rows)
    told = text(predictions).splitlines()
    assert [line.split()[0] for line in told] == ["000.jpg", "001.jpg"]
    assert all(" confidence 0." in line for line in told)
