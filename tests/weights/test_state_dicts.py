"""PyTorch files are read as tensors; anything else in them is refused, and never run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.weights.state_dicts import read_state_dict

torch = pytest.importorskip("torch", reason="needs the extra convert")


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_tensors_are_read_with_parameters_and_half_precision(tmp_path):
    values = {"a": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.full((2,), 1.5, dtype=torch.bfloat16)}
    torch.save({"state_dict": values}, tmp_path / "x.pth")
    found = read_state_dict(tmp_path / "x.pth")
    np.testing.assert_array_equal(found["a"], np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found["b"], np.full(2, 1.5, np.float32))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_is_refused_and_not_run(tmp_path, save):
    save({"weight": Harmful(tmp_path / "harmed")}, tmp_path / "x.pth")
    with pytest.raises(
        InputError, match=r"x\.pth: cannot be read as plain tensors \(.+\); .* code, which is never run"
    ) as error:
        read_state_dict(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "harmed").exists()


def test_a_tensor_that_claims_more_than_its_file_has_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: the tensor 'a' claims 4,398,046,511,104 bytes, the file has"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [torch.ones(3).to_sparse(), "text", torch.ones(3, device="meta")])
def test_what_is_no_plain_array_is_refused(tmp_path, value):
    torch.save({"a": value}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth"):
        read_state_dict(tmp_path / "x.pth")
