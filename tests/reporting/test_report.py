import errno
import io
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX.proto import event_pb2

from configs import common
from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import InputError
from semiovs_jax.evaluation import metrics
from semiovs_jax.methods import make_method
from semiovs_jax.reporting import Report, Summary, curves, panels, table
from semiovs_jax.reporting.goodput import Goodput
from semiovs_jax.reporting.metrics_log import MetricsLog, read_records
from semiovs_jax.reporting.progress import Clock, Progress
from semiovs_jax.reporting.summary import format_summary
from semiovs_jax.writers.tensorboard import Board


@pytest.fixture(scope="module")
def dataset():
    return dataset_info("shapes")


def scores(dataset, seed):
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 20, (dataset.num_classes,) * 2) + 40 * seed * np.eye(dataset.num_classes, dtype=int)
    confusion[3] = confusion[:, 3] = 0
    return metrics.scores(confusion)


def summary(restored_step=None, name="unimatch", ood="ovs", bytes_per_device=3 * 2**29, ovs_threshold=0.0):
    config = common.semiovs_unimatch().method
    config.update({"name": name, "ood": ood, "ovs_threshold": ovs_threshold})
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    records = {"labeled": 92, "unlabeled": 10490, "ood": 118287, "validation": 1449}
    return Summary(
        records, 8, 321, 1311, 104880, make_method(config), 59_344_309, mesh, bytes_per_device, restored_step
    )


def make_report(workdir, dataset, **kwargs):
    return Report(workdir, dataset, total_steps=40, images_per_step=32, log_every_steps=10, **kwargs)


def run(report, dataset, first, last):
    for step in range(first, last + 1):
        report.step(step, {"loss": jnp.float32(1 / step), "loss_x": jnp.float32(2), "mask_ratio": jnp.float32(0.5)})
        if step % 20 == 0:
            report.evaluation(step, scores(dataset, step // 10))


def test_a_whole_run(tmp_path, dataset, capsys):
    with make_report(tmp_path, dataset) as report:
        report.start(summary())
        run(report, dataset, 1, 40)
        report.panel(40, {"image": np.zeros((2, 9, 9, 3), np.uint8), "label": jnp.zeros((2, 9, 9), jnp.int32)})
        report.finish("whole images", {"seed": 3})

    records = read_records(tmp_path / "metrics.jsonl")
    assert [(r["event"], r["step"]) for r in records] == [
        ("train", 10), ("train", 20), ("eval", 20), ("train", 30), ("train", 40), ("eval", 40),
    ]  # fmt: skip
    assert records[0]["loss"] == pytest.approx(0.1)
    assert records[0]["images_per_second"] > 0
    result = json.loads((tmp_path / "result.json").read_text())
    expected = scores(dataset, 4)
    assert result["protocol"] == "whole images"
    assert result["seed"] == 3
    assert result["best"]["step"] == result["last"]["step"] == 40
    assert result["last"]["miou"] == expected.mean_iou
    assert result["last"]["iou"]["triangle"] is None
    assert result["last"]["iou"]["circle"] == expected.iou[1]
    printed = capsys.readouterr().err
    for text in ("118,287 ood", "step 40/40", "images/s", "ETA", "absent", "protocol: whole images", "best, step 40"):
        assert text in printed
    assert (tmp_path / "table.txt").read_text().strip() in printed
    assert Image.open(tmp_path / "curves.png").size[0] > 500
    assert Image.open(tmp_path / "panels" / "000040.png").mode == "RGB"
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_time_of_a_start_is_told_in_the_log_the_metrics_and_the_result(tmp_path, dataset, capsys):
    seconds = itertools.count()
    goodput = Goodput(now=lambda: next(seconds))
    with goodput.phase("compile"):
        pass
    with make_report(tmp_path, dataset, goodput=goodput) as report:
        with goodput.phase("steps"):
            run(report, dataset, 1, 40)
        report.finish("whole images")
    records = [record for record in read_records(tmp_path / "metrics.jsonl") if record["event"] == "train"]
    assert [record["seconds"] for record in records] == [{"other": 2, "compile": 1, "steps": 1}, *[{"steps": 1}] * 3]
    assert json.loads((tmp_path / "result.json").read_text())["seconds"] == {"steps": 5, "other": 3, "compile": 1}
    assert capsys.readouterr().err.endswith("time of this start: 10.0 s: steps 50.0 %, other 40.0 %, compile 10.0 %\n")


def test_a_start_that_fails_tells_its_time_once(tmp_path, dataset, capsys):
    with pytest.raises(ConnectionAbortedError), make_report(tmp_path, dataset, goodput=Goodput()):
        raise ConnectionAbortedError
    assert capsys.readouterr().err.count("time of this start") == 1


def test_log_lines_have_mfu_and_memory_where_the_device_is_known(tmp_path, dataset, capsys):
    chip = SimpleNamespace(
        device_kind="NVIDIA H100 80GB HBM3", process_index=0, memory_stats=lambda: {"peak_bytes_in_use": 3 * 2**29}
    )
    with make_report(tmp_path, dataset, devices=[chip] * 4, flops_per_step=1e12) as report:
        run(report, dataset, 1, 20)
    record = read_records(tmp_path / "metrics.jsonl")[1]
    assert record["images_per_second_per_device"] == pytest.approx(record["images_per_second"] / 4)
    assert record["mfu"] == pytest.approx(record["images_per_second"] / 32 * 1e12 / 989.5e12)
    assert record["peak_memory_gib"] == 1.5
    assert re.search(r"images/s, [\d.]+ a device, MFU [\d.]+ %, peak 1\.50 GiB, loss", capsys.readouterr().err)


def test_a_cpu_has_no_mfu_and_no_peak_memory(tmp_path, dataset):
    with make_report(tmp_path, dataset, devices=jax.devices()[:1], flops_per_step=1e12) as report:
        run(report, dataset, 1, 10)
    assert not {"mfu", "peak_memory_gib"} & read_records(tmp_path / "metrics.jsonl")[0].keys()


def test_restart_goes_on_without_gap_or_duplicate(tmp_path, dataset):
    with make_report(tmp_path / "whole", dataset) as report:
        run(report, dataset, 1, 40)
    with make_report(tmp_path / "cut", dataset) as report:
        run(report, dataset, 1, 33)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "event": "tr')
    with make_report(tmp_path / "cut", dataset, restored_step=20) as report:
        # A restart evaluates again where the checkpoint had been evaluated already.
        report.evaluation(20, scores(dataset, 2))
        run(report, dataset, 21, 40)
        report.finish("whole images")
    whole, cut = (read_records(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    for record in whole + cut:
        record.pop("images_per_second", None)
    assert whole == cut
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["best"]["step"] == 40


def test_only_log_steps_read_from_the_device(tmp_path, dataset):
    class Unreadable:
        pass

    with make_report(tmp_path, dataset) as report:
        for step in range(1, 10):
            report.step(step, {"loss": Unreadable()})
        with pytest.raises(TypeError):
            report.step(10, {"loss": Unreadable()})


def test_other_processes_write_nothing(tmp_path, dataset):
    with make_report(tmp_path / "run", dataset, writes=False) as report:
        report.start(summary())
        run(report, dataset, 1, 40)
        report.panel(40, {})
        report.finish("whole images")
    assert not (tmp_path / "run").exists()


def test_unwritable_workdir(tmp_path, dataset):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--workdir=.*file.*choose another"):
        make_report(tmp_path / "file", dataset)


def test_run_without_evaluation_still_has_a_result(tmp_path, dataset):
    with make_report(tmp_path, dataset) as report:
        report.finish("whole images")
    assert json.loads((tmp_path / "result.json").read_text()) == {"protocol": "whole images"}


def test_log_writes_strict_json(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write("train", 1, {"loss": math.nan, "more": {"x": math.inf, "y": 1.0}})
    log.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "event": "train", "loss": None, "more": {"x": None, "y": 1.0},
    }  # fmt: skip


def test_log_with_damaged_lines_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write("train", 1, {"loss": 0.25})
    digest = log.digest()
    log.write("train", 2, {"loss": 0.125})
    log.close()
    whole = path.read_text()
    for damaged in (whole.replace("0.25", "0.35"), whole[:20], ""):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"metrics\.jsonl: its lines up to step 1 are damaged or missing"):
            MetricsLog(path, 1, digest)
        assert path.read_text() == damaged
    path.unlink()
    with pytest.raises(InputError, match=r"damaged or missing; put the file back, or .*--fork_from="):
        MetricsLog(path, 1, digest)
    path.write_bytes(whole[:-3].encode() + b"\xff")  # in a line of a step that is repeated
    log = MetricsLog(path, 1, digest)
    log.close()
    assert [record["step"] for record in read_records(path)] == [1]


def test_summary_says_what_the_loss_is():
    text = format_summary(summary())
    for part in ("0.25  x u_s1: s1 of unlabeled", "0.5   x u_fp_ood: fp of ood, labeled by ovs", "80.0 epochs"):
        assert part in text
    assert "1.50 GiB" in text
    assert "59,344,309" in text
    assert f"data={jax.device_count()}" in text
    assert "fresh start" in text
    again = format_summary(summary(restored_step=1311, bytes_per_device=None))
    assert "continues after step 1,311" in again
    assert "not estimated" in again


@pytest.mark.parametrize(
    ("threshold", "trusted"), [(0.0, "every pixel"), (0.7, "pixelwise confidence >= 0.7")], ids=["trusted", "gated"]
)
def test_summary_says_which_pixels_of_ovs_labels_count(threshold, trusted):
    text = format_summary(summary(ovs_threshold=threshold))
    lines = {line.split(":")[0].split()[-1]: line for line in text.splitlines() if "labeled by" in line}
    assert lines["u_fp_ood"].endswith(f"fp of ood, labeled by ovs, {trusted}")
    student = "pixelwise confidence >= 0.95"
    assert lines["u_s1_ood"].endswith(f"s1 of ood, labeled by ovs, {trusted}; pasted pixels by student, {student}")
    assert lines["u_s1"].endswith(f"s1 of unlabeled, labeled by student, {student}")


def test_summary_says_when_terms_count_and_which_are_beside_the_mean():
    assert "0.25  x triangle x u_s1_prev: s1 of unlabeled, labeled by snapshots" in format_summary(
        summary(name="prevmatch")
    )
    mean, beside = format_summary(summary(name="semivl")).split("and beside that mean")
    assert "u_fp_ood" in mean
    assert "0.05  x fade x u_fp_mc: fp of unlabeled, labeled by maskclip, pixelwise confidence >= 0.9" in beside


@pytest.mark.parametrize(
    ("ood", "name", "stream"), [("none", "supervised", "labeled"), ("ovs", "unimatch", "unlabeled")]
)
def test_summary_names_the_stream_of_an_epoch(ood, name, stream):
    assert f"80.0 epochs of 1,311 (passes over the {stream} stream)" in format_summary(summary(name=name, ood=ood))


def test_clock_leaves_out_compilation_and_evaluations():
    seconds = iter([100.0, 110.0, 110.0, 150.0, 155.0, 155.0])
    clock = Clock(total_steps=30, now=lambda: next(seconds))
    clock.tick(1)
    clock.tick(2)
    assert clock.steps_per_second(11) == pytest.approx(1.0)
    assert clock.seconds_left(11) == pytest.approx(19.0)
    clock.restart(12)
    assert clock.steps_per_second(22) == pytest.approx(2.0)
    assert clock.seconds_left(22) == pytest.approx(55 / 21 * 8)


def test_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    progress = Progress(100, 10, terminal)
    progress.show(50, {"loss": 0.123456}, 87.65, 61)
    progress.write("words")
    progress.close()
    shown = terminal.getvalue()
    assert "50/100 [" in shown
    assert "ETA 0:01:01, 87.7 images/s, loss 0.1235" in shown
    assert "words" in shown


def test_panel_shows_pixels_labels_and_ignore(dataset):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 160, 150, 3)).astype(np.uint8)
    label = np.zeros((2, 160, 150), np.int32)
    label[:, 40:] = 2
    label[:, 80:] = 255
    normalized = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    picture = panels.draw_panel({"image": image, "weak view": normalized, "label": label[:1]}, dataset)
    found = np.lib.stride_tricks.sliding_window_view(picture, (160, 150), axis=(0, 1))
    corners = [(18, 6), (18, 6 + 156)]
    for top, left in corners:
        np.testing.assert_array_equal(found[top, left].transpose(1, 2, 0), image[0])
    plane = found[18, 6 + 2 * 156].transpose(1, 2, 0).astype(int)
    gray = np.asarray(Image.fromarray(image[0]).convert("L"), int)
    background, square, ignored = plane[:40], plane[40:80], plane[80:]
    assert np.ptp(background, -1).max() == 0  # the image alone, without its colors, not black and not as bright
    assert np.corrcoef(background[..., 0].ravel(), gray[:40].ravel())[0, 1] > 0.99
    assert 30 < background.min() < background.max() < 150
    distances = np.abs(square.mean((0, 1)) - dataset.palette[1 : dataset.num_classes].astype(int)).sum(-1)
    assert distances.argmin() == 1
    assert np.corrcoef(square.sum(-1).ravel(), gray[40:80].ravel())[0, 1] > 0.99
    assert {tuple(color) for color in ignored.reshape(-1, 3)} == {(255, 255, 255), (190, 190, 190)}
    assert picture.dtype == np.uint8


def test_pictures_of_any_size_get_one_width(dataset):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for height, width in ((40, 60), (300, 100))]
    labels = [np.full(image.shape[:2], 3) for image in images]
    picture = panels.draw_panel({"image": images, "label\nof two lines": labels}, dataset, width=120)
    assert picture.shape[1] == 6 + 2 * (120 + 6)
    assert picture.shape[0] == 2 * 18 + (80 + 6) + (360 + 6) + 18 + 6


def test_panel_of_many_classes_wraps_its_legend():
    dataset = dataset_info("context60")
    label = np.arange(60).reshape(1, 6, 10)
    wide = panels.draw_panel({"a title much too long for its narrow column": label}, dataset)
    wider = panels.draw_panel({"a": label, "b": label, "c": label}, dataset)
    assert wide.shape[0] > wider.shape[0]


def test_curves_of_nothing_and_of_supervised_runs(tmp_path):
    curves.draw_curves([], tmp_path / "empty.png")
    record = {"step": 1, "event": "train", "loss": 1.0, "loss_x": None}
    curves.draw_curves([record], tmp_path / "one.png")
    assert Image.open(tmp_path / "empty.png").size == Image.open(tmp_path / "one.png").size


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    found = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k)))
    return found


def test_curves_show_all_points_and_say_what_their_names_mean(tmp_path, figures):
    train = {"event": "train", "loss": 1.0, "loss_u_s1_ood": 0.5, "mask_ratio": 1.0, "passed_u_fp": 0.0}
    records = [train | {"step": step} for step in (10, 20)]
    records += [
        {"step": step, "event": "eval", "miou": miou, "miou_present": miou} for step, miou in ((10, 0.6), (20, 0.61))
    ]
    config = common.semiovs_unimatch().method
    curves.draw_curves(records, tmp_path / "curves.png", make_method(config))
    losses, gates, scores = figures[0].axes
    words = [text.get_text() for axes in (losses, gates) for text in axes.get_legend().get_texts()]
    assert words == [
        "loss: all terms by their weights",
        "loss_u_s1_ood: OOD images, strong view 1, labels of ovs",
        "mask_ratio: unlabeled images, labels of student that are confident enough",
        "passed_u_fp: unlabeled images, weak view with dropped channels, labels of student",
    ]
    low, high = scores.get_ylim()
    assert 59 < low < 60  # the axis fits the data
    assert 61 < high < 62
    frame = figures[0].bbox
    for line in (line for axes in figures[0].axes for line in axes.lines):
        assert not line.get_clip_on() or line in scores.lines
        assert all(frame.contains(*point) for point in line.axes.transData.transform(line.get_xydata()))


def test_the_legends_of_the_longest_method_are_whole(tmp_path, figures):
    method = common.semiovs_unimatch().method
    method.name = "prevmatch"
    terms = make_method(method).terms
    names = ["loss", "loss_x", "mask_ratio", *(f"{kind}_{term.name}" for term in terms for kind in ("loss", "passed"))]
    evaluation = {"step": 1, "event": "eval", "miou": 0.5, "miou_present": 0.6}
    record = {"step": 1, "event": "train"} | dict.fromkeys(names, 0.5)
    curves.draw_curves([record, evaluation], tmp_path / "curves.png", make_method(method))
    (figure,) = figures
    boxes = [axes.get_legend().get_window_extent() for axes in figure.axes]
    assert all(figure.bbox.count_contains(box.corners()) == 4 for box in boxes)
    for above, below in zip(boxes, figure.axes[1:], strict=False):
        assert not above.overlaps(below.get_tightbbox())


def test_table_reports_both_means():
    dataset = DatasetInfo("two", ("ground", "thing", "ghost"), np.zeros((256, 3), np.uint8), 255, 0, {})
    early = metrics.scores(np.array([[8, 0, 0], [0, 2, 0], [0, 0, 0]]))
    late = metrics.scores(np.array([[8, 0, 0], [2, 0, 0], [0, 0, 0]]))
    best, last = ({"step": step} | table.scores_record(s, dataset.classes) for step, s in ((1, early), (2, late)))
    assert table.best_of([best, last, best | {"step": 3}]) == best
    lines = {
        line[:33].strip(): line[33:].split()
        for line in table.format_table({"best": best, "last": last}, "p").splitlines()
    }
    assert lines["ground"] == ["100.00", "80.00"]
    assert lines["ghost"] == ["absent", "absent"]
    assert lines["mIoU, all classes (absent as 0)"] == ["66.67", "26.67"]
    assert lines["mIoU, classes present"] == ["100.00", "40.00"]


def test_a_full_disk_is_one_message(tmp_path, dataset):
    def log():
        with make_report(tmp_path, dataset) as report:
            report._log._file.close()
            report._log._file = Path("/dev/full").open("wb")  # noqa: SIM115
            run(report, dataset, 1, 20)

    with pytest.raises(InputError, match=r"No space left on device.*make room .*run the same command") as error:
        log()
    assert str(tmp_path) in str(error.value)
    assert error.value.__context__.errno == errno.ENOSPC


def test_a_full_disk_under_tensorboard_is_one_message_too(tmp_path, dataset):
    """Its own writer would wait forever."""
    picture = {"image": np.random.default_rng(0).integers(0, 255, (2, 99, 99, 3)).astype(np.uint8)}

    def draw():
        with make_report(tmp_path, dataset) as report:
            report._writers.open["tensorboard"]._events._py_recordio_writer._writer = Path("/dev/full").open("wb")  # noqa: SIM115
            for step in range(40):
                report.panel(step, picture)

    with pytest.raises(InputError, match=r"No space left on device"):
        draw()


def test_events_are_what_tensorboard_reads(tmp_path):
    board = Board(tmp_path / "board", purge_step=6)
    board.add_scalars({"train/loss": 0.5}, 7)
    board.add_text("summary", "words", 7)
    board.add_image("panel", np.zeros((4, 5, 3), np.uint8), 8)
    board.close()
    (path,) = (tmp_path / "board").iterdir()
    events = [event_pb2.Event.FromString(data) for data in _records(path.read_bytes())]
    assert [(event.step, [value.tag for value in event.summary.value]) for event in events[1:]] == [
        (6, []), (7, ["train/loss"]), (7, ["summary/text_summary"]), (8, ["panel"]),
    ]  # fmt: skip
    assert events[1].session_log.status == event_pb2.SessionLog.START
    assert events[2].summary.value[0].simple_value == 0.5


def _records(content):
    while content:
        length = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + length]
        content = content[16 + length :]
