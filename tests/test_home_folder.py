"""`~` in every path of a config, where no shell expands it."""

from pathlib import Path

from semiovs_jax.config_checks import inspect
from semiovs_jax.runs.digests import run_digests
from tests.experiment import shrunk_demo


def test_every_path_of_a_config_may_start_with_a_tilde(tmp_path: Path, monkeypatch):
    shrunk_demo(tmp_path)  # writes the images
    monkeypatch.setenv("HOME", str(tmp_path))
    classes = Path(__file__).parents[1] / "data_pipelines" / "datasets" / "shapes.json"
    words = Path(__file__).parents[1] / "semiovs_jax" / "ovs" / "vocabularies" / "shapes.json"
    (tmp_path / "classes.json").write_bytes(classes.read_bytes())
    (tmp_path / "words.json").write_bytes(words.read_bytes())
    config = shrunk_demo(
        tmp_path,
        **{
            "data.root": "~/shapes",
            "data.ood_root": "~/shapes/ood/JPEGImages",
            "data.dataset": "~/classes.json",
            "ovs.weights": "~/clip.safetensors",
            "ovs.vocabulary": "~/words.json",
            "ovs.labels_dir": "~/labels",
        },
    )
    assert inspect(config).faults == ()
    assert len(run_digests(config)) == 7, "all is found but labels, which are not made yet"
    assert not list(Path.cwd().glob("~*"))
