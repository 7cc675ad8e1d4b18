from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from semiovs_jax import train
from semiovs_jax.runtime import sharding
from semiovs_jax.runtime.sharding import make_mesh
from tests.experiment import shrunk_demo


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """Cheaper to compile for than eight."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", lambda: make_mesh(first))
        patch.setattr(sharding, "make_mesh", lambda devices=None: make_mesh(devices or first))
        patch.setattr(jax, "local_devices", lambda: first)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prediction")


@pytest.fixture(scope="session")
def run(folder: Path) -> Path:
    """A supervised run of two steps, each evaluated and saved."""
    changes = {
        "method.name": "supervised",
        "method.ood": "none",
        "train.steps": 2,
        "train.eval_every_steps": 1,
        "train.checkpoint_every_steps": 1,
        "train.panel_images": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
        train.train_and_evaluate(shrunk_demo(folder, **changes), folder / "runs" / "demo")
    return folder / "runs" / "demo"


@pytest.fixture(scope="session")
def photos(folder: Path, run: Path) -> list[Path]:
    """The validation images of the run."""
    return sorted((folder / "shapes" / "JPEGImages").glob("val_*.jpg"))
