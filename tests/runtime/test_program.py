import sys

import pytest

from semiovs_jax.runtime.program import config_arguments, config_flags, other_command, program


@pytest.mark.parametrize("front", ["semiovs", "python -m semiovs_jax"])
def test_a_command_that_was_started_by_its_name_names_the_next_one_so(monkeypatch, front):
    monkeypatch.setattr(sys, "argv", [f"{front} label", "--config=a.py"])
    assert program("semiovs_jax.label") == f"{front} label"
    assert other_command("train", "--workdir=my runs/a") == f"{front} train '--workdir=my runs/a'"


def test_a_command_that_was_started_as_a_module_names_the_next_one_with_the_same_python(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/semiovs_jax/label.py"])
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "-m", "semiovs_jax.label"])
    assert program("semiovs_jax.label") == "python -m semiovs_jax.label"
    assert other_command("train") == ".venv/bin/python -m semiovs_jax train"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--config=a.py --workdir=b --config.seed=3", "--config=a.py --config.seed=3"),
        ("--workdir b --config a.py --config.seed 3 --noconfig.x", "--config a.py --config.seed 3 --noconfig.x"),
        ("--config.x --workdir=b", "--config.x"),
        ("--configs=a.py", "--config=FILE"),
    ],
)
def test_the_config_is_repeated_as_it_was_typed(monkeypatch, arguments, found):
    monkeypatch.setattr(sys, "argv", ["semiovs label", *arguments.split()])
    assert config_arguments() == found.split()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--all --config.a.b=1 --out=x", "--config.a.b=1"),
        ("-config.a -1 --noconfig.b --topology v5e:2x4", "-config.a -1 --noconfig.b"),
        ("--config voc.py:92 --json config.a", "--config voc.py:92"),
        ("--all --json config.a", ""),
    ],
)
def test_the_arguments_that_are_of_the_config(arguments: str, found: str):
    assert config_flags(arguments.split()) == found.split()
