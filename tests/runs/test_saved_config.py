"""A run's config, read back from its folder."""

import json
from pathlib import Path

import pytest

from configs import demo
from data_pipelines.errors import InputError
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.runtime.config_files import load_config
from semiovs_jax.runtime.provenance import config_as_json

CONFIG = config_as_json(demo.get_config())


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_it_is_the_config_of_the_run(tmp_path: Path):
    write(tmp_path / "config.json", CONFIG)
    config = get_config(str(tmp_path))
    assert config_as_json(config) == CONFIG
    assert config.is_locked
    assert config.data.scale_range == (0.8, 1.25)  # a tuple, as in its config file


def test_that_of_a_checkpoint_is_its_own_and_without_config_json_the_newest(tmp_path: Path):
    for step in (50, 400):
        write(tmp_path / f"checkpoints/{step}/meta/metadata", {"config": CONFIG | {"seed": step}})
    assert get_config(str(tmp_path / "checkpoints" / "50")).seed == 50
    assert get_config(str(tmp_path)).seed == 400


def test_keys_of_earlier_versions_have_their_names_of_today(tmp_path: Path):
    old = json.loads(json.dumps(CONFIG))
    del old["model"]["matmul_precision"]
    old["model"]["remat"] = True
    write(tmp_path / "config.json", old)
    config = get_config(str(tmp_path))
    assert (config.model.matmul_precision, config.model.remat) == ("default", "blocks")


def test_it_is_a_config_file_whose_argument_is_the_workdir(tmp_path: Path):
    from semiovs_jax.runs import saved_config

    write(tmp_path / "a:b" / "config.json", CONFIG)
    assert load_config(f"{saved_config.__file__}:{tmp_path}/a:b") == get_config(f"{tmp_path}/a:b")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "holds no run"), ("{", "cannot be read as the config of a run")]
)
def test_a_folder_without_one_is_refused(content: str | None, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        get_config(str(tmp_path))
