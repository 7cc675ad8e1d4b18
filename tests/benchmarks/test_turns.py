import re

import pytest

from semiovs_jax.benchmarks.memory import peak_host_bytes
from semiovs_jax.benchmarks.turns import Worker, WorkerError, take_turns

MODULE = "tests.benchmarks.toy_worker"


def test_workers_alternate_in_who_is_first(tmp_path):
    log = tmp_path / "log"
    with Worker(MODULE, ["ours", str(log)]) as ours, Worker(MODULE, ["torch", str(log)]) as torch:
        found = take_turns({"ours": ours, "torch": torch}, 3, "measure", steps=2)
    assert found == {"ours": [2, 4, 6], "torch": [2, 4, 6]}
    assert log.read_text().split() == ["ours", "torch", "torch", "ours", "ours", "torch"]


def test_what_a_worker_prints_is_no_answer(tmp_path, capfd):
    with Worker(MODULE, ["ours", str(tmp_path / "log")]) as worker:
        assert worker.call("measure", steps=1) == 1
    assert "measured" in capfd.readouterr().err


def test_an_error_of_a_call_has_its_traceback_and_the_worker_lives_on(tmp_path):
    with Worker(MODULE, ["ours", str(tmp_path / "log")]) as worker:
        with pytest.raises(WorkerError, match=re.compile("fail.*toy_worker.py.*ValueError: 17", re.DOTALL)):
            worker.call("fail", value=17)
        assert worker.call("measure", steps=1) == 1


def test_a_worker_that_has_ended_is_an_error(tmp_path):
    with Worker(MODULE, ["ours", str(tmp_path / "log")]) as worker:
        with pytest.raises(WorkerError, match="status 3"):
            worker.call("leave", status=3)
        with pytest.raises(WorkerError, match="status 3"):
            worker.call("measure", steps=1)


def test_waiting_threads_sleep_unless_the_user_has_decided(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with Worker(MODULE, ["ours", str(tmp_path / "log")]) as worker:
        assert worker.call("variable", name="OMP_WAIT_POLICY") == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with Worker(MODULE, ["ours", str(tmp_path / "log")], {"OWN": "1"}) as worker:
        assert worker.call("variable", name="OMP_WAIT_POLICY") == "active"
        assert worker.call("variable", name="OWN") == "1"


def test_the_peak_stays_after_the_memory_is_freed():
    before = peak_host_bytes()
    held = b"\1" * (before + 2**26)
    del held
    assert peak_host_bytes() >= before + 2**26
