import sys

import pytest

from semiovs_jax.convert import find_converters, main
from semiovs_jax.models.deeplab.resnet_params import convert_resnet

KINDS = ["clip", "clip_visual", "deeplab", "resnet", "sed", "semivl"]


def package(tmp_path, monkeypatch, modules):
    """A package `family_models`, with these sources by module."""
    for module, source in modules.items():
        path = tmp_path / "family_models" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (path.parent, tmp_path / "family_models"):
            (folder / "__init__.py").touch()
        path.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("family_models")]:
        monkeypatch.delitem(sys.modules, name)
    return __import__("family_models")


def test_every_kind_has_its_converter():
    found = find_converters()
    assert sorted(found) == KINDS
    assert found["resnet"] is convert_resnet


def test_a_table_of_any_params_module_is_found(tmp_path, monkeypatch):
    modules = {"a/params": "KINDS = {'a': print}", "b/vit_params": "KINDS = {'b': print}", "b/file": "KINDS = {'c': 1}"}
    modules["b/hyperparams"] = "raise AssertionError"
    modules = {name.replace("/", "_family/"): source for name, source in modules.items()}
    assert sorted(find_converters(package(tmp_path, monkeypatch, modules))) == ["a", "b"]


def test_two_modules_with_one_kind_are_an_error(tmp_path, monkeypatch):
    source = "def convert(source, name): ...\nKINDS = {'vit': convert}"
    found = package(tmp_path, monkeypatch, {"one_params": source, "two_params": source})
    with pytest.raises(ValueError, match=r"family_models\.two_params: KINDS has 'vit', as family_models\.one_params"):
        find_converters(found)


@pytest.mark.parametrize("arguments", [["--help"], ["a.pth", "out", "--kind=vit"]])
def test_all_kinds_are_listed(capsys, arguments):
    with pytest.raises(SystemExit):
        main(arguments)
    output = capsys.readouterr()
    assert "{" + ",".join(KINDS) + "}" in output.out + output.err
