"""README's tables and the folders of methods, labelers, students and commands name the same things."""

import importlib.util
import pkgutil
import re
from pathlib import Path

import jax
import pytest
from flax import nnx

import semiovs_jax.labelers
from semiovs_jax import methods
from semiovs_jax.__main__ import find_commands
from semiovs_jax.models import FAMILIES, build_student

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    return re.split(r"\n#{2,3} ", README.split(f"# {title}\n")[1])[0]


def test_methods():
    rows = "\n".join(line for line in _section("The methods").splitlines() if line.startswith("| `name="))
    listed = set(re.findall(r"`(?:name=)?([a-z0-9_]+)`", "\n".join(row.split("|")[1] for row in rows.splitlines())))
    assert listed == set(methods.names())


def test_labelers():
    found = {module.name for module in pkgutil.iter_modules(semiovs_jax.labelers.__path__)} - {"base"}
    listed = {name for name in re.findall(r"`([a-z_]+)`", _section("The methods")) if name in found}
    assert listed == found


def test_students():
    rows = _section("The methods").split("| `config.model.backbone` |")[1].splitlines()
    listed = {name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed == set(FAMILIES)


def _millions(student: str) -> float:
    config = {"backbone": student, "dtype": "float32", "remat": "none"}
    shapes = nnx.eval_shape(lambda: build_student(config, 21, image_size=321, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param))) / 1e6


def test_numbers_of_parameters():
    rows = [row.split("|") for row in _section("The methods").splitlines() if re.match(r"\| `(resnet|clip_vit)", row)]
    told = {
        name: millions
        for _, names, _, counts, *_ in rows
        for name, millions in zip(re.findall(r"`(\w+)`", names), counts.split(","), strict=True)
    }
    assert {name: f"{_millions(name):.1f}" for name in told} == {name: count.strip() for name, count in told.items()}


def test_commands_are_modules():
    names = re.findall(r"^\| `([a-z_.]+)` \|", _section("Commands"), re.MULTILINE)
    assert len(names) > 10
    assert not [name for name in names if importlib.util.find_spec(name) is None]


def test_short_names_of_commands():
    rows = re.findall(r"^\| `(semiovs_jax\.\w+)` \|.*\| `semiovs (\w+)` \|$", _section("Commands"), re.MULTILINE)
    commands = {name: command.module for name, command in find_commands().items()}
    assert {name: module for module, name in rows} == commands


@pytest.mark.parametrize("kind", ["a method", "a labeler", "a student", "an OVS"])
def test_adding_takes_six_steps(kind: str):
    steps = re.findall(r"^(\d)\. ", _section(f"How to add {kind}"), re.MULTILINE)
    assert steps == list("123456")
