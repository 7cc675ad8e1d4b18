import hashlib
import http.server
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from configs import context, voc
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.splits import __main__ as splits
from data_pipelines.splits.balanced import draw_balanced
from data_pipelines.splits.lists import make_split, write_lists
from data_pipelines.splits.published import ListFacts, PublishedSplits, load_published, read_lists
from tests.custom_tree import label as custom_label
from tests.custom_tree import write_label, write_text

SHARED = Path(__file__).parents[4] / "shared" / "splits"  # ids and checksums of the published lists; may be absent
NOT_SHIPPED = f"the published lists are not shipped with the repository, and not in {SHARED}"
UPSTREAM = {"voc2012": "pascal", "context60": "pc60"}
DATASETS = {"voc2012": "voc21", "context60": "context60"}


def lines(*ids: str) -> bytes:
    return "\n".join(f"JPEGImages/{id_}.jpg SegmentationClass/{id_}.png" for id_ in ids).encode()


LISTS = {"2/labeled.txt": lines("a", "b"), "2/unlabeled.txt": lines("c", "d") + b"\n", "val.txt": lines("e")}


def publish(contents: dict[str, bytes], url: str = "http://127.0.0.1:9/{path}") -> PublishedSplits:
    facts = {path: ListFacts(len(c.splitlines()), hashlib.sha256(c).hexdigest()) for path, c in contents.items()}
    return PublishedSplits("tiny", "me/lists", "0" * 40, "splits/tiny", url, facts)


def write_files(folder: Path, contents: dict[str, bytes]) -> Path:
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flipped(content: bytes) -> bytes:
    return content[:20] + bytes([content[20] ^ 1]) + content[21:]


class Host(http.server.ThreadingHTTPServer):
    """Serves `files` on loopback; `faults` are what happens to the next requests: a status, or bytes left out."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[tuple[str, int]] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{repository}}/{{revision}}/{{folder}}/{{path}}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        kind, amount = self.server.faults.pop(0) if self.server.faults else ("", 0)
        content = self.server.files.get(self.path)
        self.send_response(amount if kind == "status" else 200 if content is not None else 404)
        body = b"" if kind == "status" or content is None else content
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - amount] if kind == "truncated" else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The host; nothing of what is fetched from it may stay behind."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with Host() as server:
        server.files = {f"/me/lists/{'0' * 40}/splits/tiny/{path}": content for path, content in LISTS.items()}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    assert not list((tmp_path / "temporary").iterdir())


def test_lists_are_fetched_at_the_pinned_revision(host):
    published = publish(LISTS, host.url)
    assert read_lists(published) == LISTS
    assert host.requests == list(host.files)


@pytest.mark.parametrize("fault", [("truncated", 3), ("status", 503)])
def test_a_download_that_breaks_off_is_tried_again(host, fault):
    host.faults = [fault] * 2
    assert read_lists(publish(LISTS, host.url)) == LISTS
    assert len(host.requests) == len(LISTS) + 2


def test_a_download_that_stays_truncated_is_refused(host):
    host.faults = [("truncated", 3)] * 3
    with pytest.raises(InputError, match=r"0 of 3 lists .*2/labeled.txt \(.*IncompleteRead.*--from_folder"):
        read_lists(publish(LISTS, host.url))


def test_the_first_list_that_the_host_does_not_have_ends_it(host):
    del host.files[next(iter(host.files))]
    with pytest.raises(InputError, match=r"404.*get me/lists at 0000"):
        read_lists(publish(LISTS, host.url))
    assert len(set(host.requests)) == 1


@pytest.mark.parametrize("change", [flipped, lambda content: content[:-1], lambda content: content + b"\n"])
@pytest.mark.parametrize("path", LISTS)
def test_one_byte_of_difference_is_refused_wherever_it_comes_from(host, tmp_path, change, path):
    changed = {**LISTS, path: change(LISTS[path])}
    found, expected = hashlib.sha256(changed[path]).hexdigest(), hashlib.sha256(LISTS[path]).hexdigest()
    message = f"2 of 3 lists .* but not .*{path} .*SHA256.* expected {expected} but got {found}.; .*core.autocrlf=false"
    with pytest.raises(InputError, match=message):
        read_lists(publish(LISTS), write_files(tmp_path, changed))
    host.files = {f"/me/lists/{'0' * 40}/splits/tiny/{path}": content for path, content in changed.items()}
    with pytest.raises(InputError, match=message):
        read_lists(publish(LISTS, host.url))


def test_all_wrong_lists_are_named_at_once(host, tmp_path):
    changed = {path: flipped(content) for path, content in LISTS.items()}
    host.files = dict(zip(host.files, changed.values(), strict=True))
    for published, folder in (
        (publish(LISTS), write_files(tmp_path / "copy", changed)),
        (publish(LISTS, host.url), None),
    ):
        with pytest.raises(InputError, match="0 of 3 lists") as error:
            read_lists(published, folder)
        for path, content in changed.items():
            assert path in str(error.value)
            assert hashlib.sha256(content).hexdigest() in str(error.value)
    assert files_below(tmp_path / "copy") == changed, "what is there is left as it is"


def test_lists_missing_in_a_folder_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"0 of 3 lists .*labeled.txt \(No such file.*val.txt.*folder splits/tiny here"
    ):
        read_lists(publish(LISTS), tmp_path)


def test_lists_are_written_once_byte_for_byte(tmp_path):
    assert write_lists(tmp_path / "splits", LISTS) == 3
    assert files_below(tmp_path) == {f"splits/{path}": content for path, content in LISTS.items()}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_lists(tmp_path / "splits", LISTS) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    (tmp_path / "splits/2/labeled.txt").unlink()
    assert write_lists(tmp_path / "splits", LISTS) == 1


def test_another_list_is_never_overwritten(tmp_path):
    write_files(tmp_path, {"2/labeled.txt": lines("a")})
    with pytest.raises(InputError, match=r"2/labeled.txt: already there with other contents"):
        write_lists(tmp_path, LISTS)
    assert files_below(tmp_path) == {"2/labeled.txt": lines("a")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"2/unlabeled.txt": lines("a", "c")},
            r"2/labeled.txt and 2/unlabeled.txt share 1 .*\(JPEGImages/a\)",
        ),
        ({"2/labeled.txt": lines("a", "e")}, r"2/labeled.txt and val.txt share 1 image\(s\) \(JPEGImages/e\)"),
        ({"2/unlabeled.txt": b"JPEGImages/e.png\n"}, r"2/unlabeled.txt and val.txt share 1 image"),
        ({"train.txt": lines("a", "e")}, r"train.txt and val.txt share 1 image"),
    ],
)
def test_overlaps_are_refused_by_id_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        write_lists(tmp_path, {**LISTS, **change})
    assert not files_below(tmp_path)


def test_a_val_list_that_is_there_already_is_looked_at(tmp_path):
    write_files(tmp_path, {"val.txt": lines("a")})
    with pytest.raises(InputError, match=r"labeled.txt and val.txt share 1 image"):
        write_lists(tmp_path, {"labeled.txt": lines("a"), "unlabeled.txt": lines("b")})


def test_other_protocols_may_share_images(tmp_path):
    assert write_lists(tmp_path, {**LISTS, "1/labeled.txt": lines("c"), "1/unlabeled.txt": lines("a", "b", "d")}) == 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"name an --out"):
        write_lists(tmp_path / "file", LISTS)


@pytest.mark.parametrize("name", UPSTREAM)
def test_facts_agree_with_the_dataset_and_the_experiments(name):
    published, counts = load_published(name), dataset_info(DATASETS[name]).counts
    sizes = {path: facts.lines for path, facts in published.lists.items()}
    assert sizes["val.txt"] == counts["val"]
    protocols = {path.split("/")[0] for path in sizes if "/" in path}
    assert all(sizes[f"{p}/labeled.txt"] + sizes[f"{p}/unlabeled.txt"] == counts["train"] for p in protocols)
    experiments = {"voc2012": voc, "context60": context}[name]
    assert protocols.issuperset(experiments.SPLITS)
    for protocol in experiments.SPLITS:
        data = experiments.get_config(protocol).data
        for split in (data.labeled_split, data.unlabeled_split, data.val_split):
            assert split.removeprefix("splits/") in sizes
    assert "{revision}" in published.url
    assert len(published.revision) == 40


def test_a_dataset_without_published_splits_is_named():
    with pytest.raises(InputError, match=r"--dataset=farm .* name one of context60, voc2012, or .*--make_split"):
        load_published("farm")


@pytest.mark.skipif(not SHARED.is_dir(), reason=NOT_SHIPPED)
@pytest.mark.parametrize("name", UPSTREAM)
def test_facts_are_those_of_upstream(name):
    rows = [line.split("\t") for line in (SHARED / "UPSTREAM.tsv").read_text().splitlines()[1:]]
    prefix = UPSTREAM[name] + "/"
    expected = {p.removeprefix(prefix): ListFacts(int(n), sha) for p, n, sha in rows if p.startswith(prefix)}
    assert load_published(name).lists == expected
    assert load_published(name).revision in (SHARED / "README.md").read_text()


@pytest.mark.skipif(not SHARED.is_dir(), reason=NOT_SHIPPED)
@pytest.mark.parametrize(("name", "rebuilt"), [("voc2012", 16), ("context60", 6)])
def test_published_bytes_rebuilt_from_ids_are_taken_and_one_flipped_byte_is_not(tmp_path, name, rebuilt):
    """Every labeled and val list, VOC's train_aug and blended unlabeled lists; the order of the others is not known."""
    contents = published_bytes(name)
    published = load_published(name)
    assert len(contents) == rebuilt
    published = replace(published, lists={path: published.lists[path] for path in contents})
    folder = write_files(tmp_path / "copy", contents)
    assert write_lists(tmp_path / "splits", read_lists(published, folder)) == rebuilt
    assert files_below(tmp_path / "splits") == contents
    for path in contents:
        (folder / path).write_bytes(flipped(contents[path]))
        with pytest.raises(InputError, match=path):
            read_lists(published, folder)
        (folder / path).write_bytes(contents[path])


def published_bytes(name: str) -> dict[str, bytes]:
    """The lists whose order of ids is known: Context's end without a line end, as do VOC's original labeled lists."""
    ids = {path.stem: path.read_text().split() for path in (SHARED / name).glob("*.txt")}
    contents = {}
    for stem, found in ids.items():
        protocol = stem.removeprefix("labeled_")
        if protocol != stem:
            contents[f"{protocol}/labeled.txt"] = _pairs(name, found, "train", end=not protocol.isdigit())
            if name == "voc2012" and protocol.startswith("1_"):
                labeled = set(found)
                rest = [id_ for id_ in ids["train_aug"] if id_ not in labeled]
                contents[f"{protocol}/unlabeled.txt"] = _pairs(name, rest, "train", end=True)
        elif stem != "train":
            contents[f"{stem}.txt"] = _pairs(name, found, "val", end=True)
    return contents


def _pairs(name: str, ids: list[str], split: str, *, end: bool) -> bytes:
    context = name == "context60"
    labels = f"SegmentationClassContext60/{split}" if context else "SegmentationClass"
    text = "\n".join(f"JPEGImages/{id_}.jpg {labels}/{id_}.png" for id_ in ids)
    return (text + "\n" * (end and not context)).encode()


presences = st.tuples(st.integers(1, 30), st.integers(1, 6)).flatmap(lambda shape: arrays(bool, shape))


@settings(max_examples=200, deadline=None)
@given(present=presences, fraction=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_draw_is_balanced(present, fraction, seed):
    count = round(fraction * len(present))
    drawn = draw_balanced(present, count, seed)
    assert len(set(drawn.tolist())) == len(drawn) == count
    assert (drawn == draw_balanced(present, count, seed)).all()
    totals, counts = present.sum(axis=0), present[drawn].sum(axis=0)
    occurring = int((totals > 0).sum())
    if occurring:
        assert (counts >= np.minimum(count // occurring, totals)).all()
        assert (counts > 0).sum() >= min(count, occurring)


def test_seeds_draw_different_images():
    present = np.ones((100, 2), bool)
    draws = {tuple(draw_balanced(present, 10, seed)) for seed in range(5)}
    assert len(draws) == 5


def test_a_rare_class_is_drawn_as_often_as_a_common_one():
    present = np.zeros((100, 2), bool)
    present[:, 0] = True
    present[90:, 1] = True
    drawn = draw_balanced(present, 10, 0)
    assert present[drawn].sum(axis=0).tolist() == [10, 10]
    apart = present.copy()
    apart[90:, 0] = False
    assert apart[draw_balanced(apart, 10, 0)].sum(axis=0).tolist() == [5, 5]


@pytest.fixture
def farm(tmp_path):
    """Ten labeled images, "bar" in the last two only; no image is needed to draw."""
    root = tmp_path / "farm"
    for i in range(10):
        plane = custom_label()
        write_label(root / "indices" / f"{i}.png", plane if i >= 8 else np.where(plane == 2, 0, plane))
    rows = [f"photos/{i}.jpg indices/{i}.png\n" for i in range(10)]
    write_text(root / "train.txt", "".join(rows))
    write_text(root / "classes.json", json.dumps({"name": "farm", "classes": CLASSES, "ignore_index": 255}))
    return root


CLASSES = ["floor", "blob", "bar", "gone"]


def test_a_split_is_disjoint_complete_and_counted(farm):
    info = dataset_info(farm / "classes.json")
    split = make_split(str(farm), "train.txt", info, 3, seed=5)
    parts = [split.lists[name].decode().splitlines() for name in ("labeled.txt", "unlabeled.txt")]
    assert [len(part) for part in parts] == [3, 7]
    assert sorted(parts[0] + parts[1]) == (farm / "train.txt").read_text().splitlines()
    assert split.listed.tolist() == [10, 10, 2, 0]
    assert split.labeled[2] >= 1
    assert make_split(str(farm), "train.txt", info, 3, seed=5).lists == split.lists


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [
        (11, 0, r"--make_split=11: .*train.txt lists 10 images"),
        (10, 0, r"leave at least 1 unlabeled"),
        (0, 0, r"--make_split=0"),
        (3, -1, r"--seed=-1"),
    ],
)
def test_numbers_out_of_range_are_refused(farm, count, seed, message):
    with pytest.raises(InputError, match=message):
        make_split(str(farm), "train.txt", dataset_info(farm / "classes.json"), count, seed)


def test_what_cannot_be_drawn_from_is_named(farm):
    info = dataset_info(farm / "classes.json")
    (farm / "indices/1.png").write_bytes(b"no image")
    (farm / "indices/2.png").unlink()
    write_label(farm / "indices/3.png", np.full((4, 4), 9, np.uint8))
    with pytest.raises(InputError, match=r"3 of 10 labels cannot be used.*1.png.*2.png.*3.png: label 9 is out of"):
        make_split(str(farm), "train.txt", info, 3, 0)
    write_text(farm / "twice.txt", "photos/0.jpg indices/0.png\n" * 2)
    with pytest.raises(InputError, match=r"twice.txt: 1 image\(s\) are listed more than once"):
        make_split(str(farm), "twice.txt", info, 1, 0)
    with pytest.raises(InputError, match=r"--list=none.txt: no such file"):
        make_split(str(farm), "none.txt", info, 1, 0)
    with pytest.raises(InputError, match=r"--root is empty"):
        make_split("", "train.txt", info, 1, 0)


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["splits", *map(str, arguments)])
    splits.main()


def test_the_command_draws(farm, monkeypatch, capsys):
    flags = [f"--dataset={farm / 'classes.json'}", f"--root={farm}", "--list=train.txt", "--make_split=4", "--seed=2"]
    run(monkeypatch, *flags, f"--out={farm / 'splits'}")
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "labeled of class",
        "4 10 floor",
        "4 10 blob",
        "2 2 bar",
        "0 0 gone",
        f"{farm / 'splits'}: 2 lists written, 0 already there",
    ]
    assert len(files_below(farm / "splits")) == 2
    write_text(farm / "other/val.txt", "photos/8.jpg indices/8.png\n")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *flags, f"--out={farm / 'other'}")
    assert "labeled.txt and val.txt share 1 image(s) (photos/8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root=x"], "--root, --list and --seed need --make_split"),
        (["--make_split=1", "--from_folder=x"], "--from_folder cannot be combined with --make_split"),
    ],
)
def test_flags_without_effect_are_refused(monkeypatch, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--dataset=voc2012", "--out=x", *flags)
    assert message in capsys.readouterr().err


def test_the_command_writes_published_lists(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(splits, "load_published", lambda name: publish(LISTS))
    folder = write_files(tmp_path / "copy", LISTS)
    for written in (3, 0):
        run(monkeypatch, "--dataset=voc2012", f"--out={tmp_path / 'splits'}", f"--from_folder={folder}")
        assert f"{written} lists written" in capsys.readouterr().out
    assert files_below(tmp_path / "splits") == LISTS


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "data_pipelines.splits", "--dataset=voc2012", f"--out={tmp_path / 'splits'}"]
    done = subprocess.run([*command, f"--from_folder={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --from_folder=")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "splits").exists()
