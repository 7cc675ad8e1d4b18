"""The pages of the documentation and the code name the same things; the site is built without a warning."""

import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from flax import nnx

import semiovs_jax.labelers
from semiovs_jax import methods
from semiovs_jax.models import FAMILIES, build_student
from tests.documented import PAGES, ROOT, modules, section

DOCS = ROOT / "docs"
METHOD, EXTEND, COMMANDS = DOCS / "method.md", DOCS / "extend.md", DOCS / "commands.md"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "NO_MKDOCS_2_WARNING": "1"}

# Where the names are defined that the steps of "How to add ..." tell to write or to use.
DEFINED_IN = {
    "a method": ("methods/__init__.py", "methods/table.py"),
    "a labeler": ("labelers/__init__.py", "labelers/base.py", "config_checks.py"),
    "a student": ("models/__init__.py", "models/base.py", "weights/keys.py", "convert.py"),
    "an OVS": ("ovs/__init__.py", "ovs/base.py"),
    "a dataset": ("../data_pipelines/datasets/__init__.py",),
}


def test_methods():
    rows = "\n".join(line for line in section(METHOD, "The methods").splitlines() if line.startswith("| `name="))
    listed = set(re.findall(r"`(?:name=)?([a-z0-9_]+)`", "\n".join(row.split("|")[1] for row in rows.splitlines())))
    assert listed == set(methods.names())


def test_labelers():
    found = {module.name for module in pkgutil.iter_modules(semiovs_jax.labelers.__path__)} - {"base"}
    listed = {name for name in re.findall(r"`([a-z_]+)`", section(METHOD, "The methods")) if name in found}
    assert listed == found


def test_students():
    rows = section(METHOD, "The students").split("| `config.model.backbone` |")[1].splitlines()
    listed = {name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed == set(FAMILIES)


def _millions(student: str) -> float:
    config = {"backbone": student, "dtype": "float32", "remat": "none"}
    shapes = nnx.eval_shape(lambda: build_student(config, 21, image_size=321, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param))) / 1e6


def test_numbers_of_parameters():
    rows = [
        row.split("|") for row in section(METHOD, "The students").splitlines() if re.match(r"\| `(resnet|clip)", row)
    ]
    told = {
        name: millions
        for _, names, _, counts, *_ in rows
        for name, millions in zip(re.findall(r"`(\w+)`", names), counts.split(","), strict=True)
    }
    assert {name: f"{_millions(name):.1f}" for name in told} == {name: count.strip() for name, count in told.items()}


def test_commands_are_modules():
    names = re.findall(r"^\| `([a-z_.]+)` \|", COMMANDS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 10
    assert not [name for name in names if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("kind", DEFINED_IN)
def test_adding_takes_six_steps(kind: str):
    steps = re.findall(r"^(\d)\. ", section(EXTEND, f"How to add {kind}"), re.MULTILINE)
    assert steps == list("123456")


@pytest.mark.parametrize("kind", DEFINED_IN)
def test_what_the_steps_name_exists(kind: str):
    code = [(ROOT / "semiovs_jax" / file).read_text(encoding="utf-8") for file in DEFINED_IN[kind]]
    names = re.findall(r"`(\w+)[(`]", section(EXTEND, f"How to add {kind}"))
    assert len(names) > 2
    assert not [name for name in names if not any(re.search(rf"\b{name}\b", text) for text in code)]


def test_paths_exist():
    text = EXTEND.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:semiovs_jax|data_pipelines|tests|models|configs)/[\w/.]+)`", text)
    paths = [path for path in paths if "NAME" not in path]
    assert len(paths) > 5
    assert not [path for path in paths if not any((root / path).exists() for root in (ROOT, ROOT / "semiovs_jax"))]


def test_the_tree_exists():
    tree = EXTEND.read_text(encoding="utf-8").split("```")[1]
    roots = ("configs", "semiovs_jax", "data_pipelines", "tests")
    there = {*roots, *(path.name for root in roots for path in (ROOT / root).rglob("*"))}
    told = re.findall(r"\b(\w+\.py|\w+(?=/(?:\s|$)))", tree)
    assert len(told) > 30
    assert not set(told) - there


def test_links_into_the_code_become_text():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "site" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tpu.md"))
    assert hooks.on_page_markdown("see [the keys](../configs/common.py).", page=page) == "see the keys."
    with pytest.raises(hooks.PluginError, match=r"docs/tpu\.md: \.\./configs/none\.py: no such file"):
        hooks.on_page_markdown("[it](../configs/none.py#L1)", page=page)


@pytest.mark.slow
def test_flags_of_commands_exist():
    told = {(page.name, module, *arguments) for page in PAGES for module, arguments in modules(page)}
    helps = _helps(sorted({module for _, module, *_ in told} - {"semiovs_jax"}))
    assert len(told) > 40
    unknown = []
    for page, module, *arguments in sorted(told):
        for argument in (argument for argument in arguments if argument.startswith("--")):
            name = argument.removeprefix("--").partition("=")[0]
            if not re.search(rf"--(\[no\])?{re.escape(name)}\b", helps.get(module, "--help")):
                unknown.append(f"{page}: {module} {argument}")
    assert not unknown


def _helps(names: list[str]) -> dict[str, str]:
    command = [sys.executable, DOCS / "site" / "command_helps.py", *names]
    return json.loads(subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", DOCS / "site" / "mkdocs.yml", "-d", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    generated = {
        "configuration": "optim.learning_rate",  # from configs/common.py
        "commands": "usage: python -m semiovs_jax.fetch",  # from the parsers
        "api": "workdir of the run, or the directory of one checkpoint in it",  # from the docstrings
        "exactness": "semiovs_unimatch_step.npz",  # from the goldens
    }
    for page, text in generated.items():
        assert text in re.sub(r"<[^>]+>", "", (tmp_path / page / "index.html").read_text(encoding="utf-8"))
    assert not list(tmp_path.rglob("hooks.py"))
