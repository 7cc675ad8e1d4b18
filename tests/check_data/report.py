"""Runs check_data on configs/custom.py."""

from types import SimpleNamespace

from configs import custom
from semiovs_jax import check_data

WEIGHTS = {"model.random_init": True, "ovs.name": "maskclip", "ovs.weights": "clip.safetensors", "ovs.image_size": 64}


def check(capsys, **changes) -> tuple[int, str]:
    """Runs the command on configs/custom.py; `changes` by dotted key. Returns its status and what it prints."""
    config = custom.get_config().unlock()
    report = changes.pop("json", "")
    config.update_from_flattened_dict({**WEIGHTS, "data.num_threads": 2, **changes})
    status = 0
    try:
        check_data.main(SimpleNamespace(config=config.lock(), json=report))
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().out


def faults_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\nfaults\n")[1].strip().splitlines()[:-2]]
