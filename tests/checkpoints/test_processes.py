"""Two processes share one run, as the hosts of a TPU slice do."""

import json
import os
import subprocess
import sys

import pytest

from tests.free_port import free_port

WORKER = """
import os, signal, sys, time
process, port, workdir, task = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
import jax
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
import grain, json, numpy as np
from semiovs_jax.checkpoints.checkpointer import Checkpointer
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh, replicated

mesh = make_mesh()
iterator = iter(grain.MapDataset.range(1000).seed(1).shuffle().repeat()[process::2].batch(2).to_iter_dataset())
halves = jax.make_array_from_process_local_data(batch_sharding(mesh), np.full((2, 3), process, np.float32))
state = {"split": halves, "same": jax.device_put(np.arange(4.0), replicated(mesh))}

with Checkpointer(workdir) as checkpointer, Preemption() as preemption:
    restored = checkpointer.restore(state, iterator)
    if task == "save":
        assert restored is None
        for step in range(1, 10_000):
            batch = next(iterator)
            time.sleep(0.01)
            if step in (2, 3):
                checkpointer.save(step, state, iterator, {})
            if step == 5 and process == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if preemption.reached(step):
                checkpointer.save(step, state, iterator, {}, miou=0.5)
                break
        result = {"step": step, "next": next(iterator).tolist()}
    else:
        shards = [shard.data.tolist() for shard in restored.state["split"].addressable_shards]
        result = {"step": restored.meta["step"], "next": next(iterator).tolist(), "shards": shards,
                  "best": checkpointer.best}
print("RESULT", json.dumps(result), flush=True)
"""


def run_both(workdir, task):
    """Runs the task in two processes; returns what each printed last, and their logs."""
    port = str(free_port())
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), port, str(workdir), task],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    results = []
    for process, (out, log) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, log
        (line,) = [line for line in out.splitlines() if line.startswith("RESULT")]
        results.append(json.loads(line.removeprefix("RESULT")))
    return results, [log for _, log in outputs]


@pytest.mark.slow
def test_two_processes_leave_together_and_skip_the_same_broken_checkpoint(tmp_path):
    saved, _ = run_both(tmp_path, "save")
    assert saved[0]["step"] == saved[1]["step"] >= 5, "both leave at the same step after one got SIGTERM"
    assert saved[0]["next"] != saved[1]["next"], "each has its own records"

    restored, _ = run_both(tmp_path, "restore")
    for process, (before, after) in enumerate(zip(saved, restored, strict=True)):
        assert after["step"] == before["step"]
        assert after["next"] == before["next"]
        assert after["shards"] == [[[process] * 3] * 2]
        assert after["best"] == [before["step"], 0.5]

    newest = tmp_path / "checkpoints" / str(saved[0]["step"])
    manifest = newest / "state" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:-3])
    restored, logs = run_both(tmp_path, "restore")
    assert [result["step"] for result in restored] == [3, 3]
    assert "manifest.ocdbt has" in logs[0]
    assert (newest.parent / f"broken-{newest.name}").is_dir()
