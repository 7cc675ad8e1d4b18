"""The table of published weights, and the command that downloads them."""

import hashlib
import re
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from semiovs_jax import fetch
from semiovs_jax.convert import find_converters
from semiovs_jax.models import FAMILIES
from semiovs_jax.weights.published import load_published, mirrored

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_the_table_names_kinds_students_and_digests_that_exist():
    table, converters = load_published(), find_converters()
    for entry in table.values():
        assert entry.kind in converters
        assert set(re.findall(r"config\.model\.backbone=(\w+)", entry.purpose)) <= set(FAMILIES)
        for file in entry.files.values():
            assert file.url.startswith("https://")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", file.sha256)
            named = re.search(r"-([0-9a-f]{8})\.pth$", file.url)
            assert (file.sha256 or "")[:8] == (named[1] if named else "")
    paths = [path for entry in table.values() for path in entry.files]
    assert len(paths) == len(set(paths))


def test_without_a_name_it_prints_what_there_is(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SEMIOVS_MIRROR", raising=False)
    fetch.main([])
    printed = capsys.readouterr().out
    for name, entry in load_published().items():
        assert f"{name}: {entry.purpose}" in printed
        assert all(file.url in printed for file in entry.files.values())
    assert printed.splitlines()[-1].endswith(" -m semiovs_jax fetch NAME")


@pytest.mark.parametrize("mirror", ["https://mirror.example/weights", "https://mirror.example/weights/", "/mnt/mirror"])
def test_a_mirror_replaces_the_host(mirror: str):
    base = mirror.rstrip("/")
    assert mirrored("https://a.org/models/w.pth", "x/w.pth", mirror) == f"{base}/models/w.pth"
    assert mirrored("https://a.org/download?id=7", "x/w.pth", mirror) == f"{base}/x/w.pth"
    assert mirrored("https://a.org/models/w.pth", "x/w.pth", "") == "https://a.org/models/w.pth"


def test_weights_of_a_mirror_and_the_command_that_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    entry = load_published()["clip_vit_b16"]
    for path, file in entry.files.items():
        source = Path(mirrored(file.url, path, str(tmp_path / "mirror")))
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(CONTENT)
    monkeypatch.setenv("SEMIOVS_MIRROR", str(tmp_path / "mirror"))
    out = tmp_path / "weights"
    fetch.main(["clip_vit_b16", f"--out={out}"])
    printed = capsys.readouterr().out
    assert [(out / path).read_bytes() for path in entry.files] == [CONTENT, CONTENT]
    assert f"sha256 {DIGEST}, not checked" in printed
    source, converted = out / "clip_vit_b16" / "pytorch_model.bin", out / "clip_vit_b16.safetensors"
    assert f" convert {source} {converted} --kind=clip\n" in printed


def test_all_faults_are_told_and_what_can_be_downloaded_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = load_published()
    for name in ("resnet18", "resnet101"):
        ((path, file),) = table[name].files.items()
        source = Path(mirrored(file.url, path, str(tmp_path / "mirror")))
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(CONTENT)
    monkeypatch.setenv("SEMIOVS_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(InputError) as error:
        fetch.main(["resnet18", "resnet34", "resnet101", f"--out={tmp_path}"])
    wrong, missing = error.value.args
    assert f"sha256 is {DIGEST}, expected a beginning with f37072fd" in wrong
    assert "No such file" in missing
    assert (tmp_path / "resnet101.pth").read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"^resnet19: no such weights; name some of resnet50, "):
        fetch.main(["resnet18", "resnet19"])
