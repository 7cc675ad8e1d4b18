import dataclasses
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import demo
from data_pipelines.errors import InputError
from semiovs_jax.compile import compile_config
from semiovs_jax.runtime import ahead, hlo
from semiovs_jax.runtime.command import CPU_FLAGS
from semiovs_jax.runtime.roofline import CHIPS, roofline
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh, replicated


def compile_toy(extra, devices=8, dtype=jnp.float32):
    """Compiles an SGD step of one matrix, whose loss adds `extra(batch)`, over a data-parallel mesh."""
    mesh = make_mesh(ahead.topology_devices(f"cpu:{devices}"))
    weights = jax.ShapeDtypeStruct((128, 64), dtype, sharding=replicated(mesh))
    batch = jax.ShapeDtypeStruct((16, 128), dtype, sharding=batch_sharding(mesh))

    def step(weights, batch):
        loss, gradient = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(batch @ w)))(weights)
        return weights - gradient, loss + extra(batch)

    jitted = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
    return ahead.report_step(jitted, (weights, batch), mesh)


def test_a_clean_step_reports_its_memory_flops_and_collectives():
    report = compile_toy(lambda batch: 0.0)
    assert report.faults == ()
    weights, batch_share = 4 * 128 * 64, 4 * 2 * 128
    assert report.arguments == weights + batch_share
    assert report.donated == weights
    assert weights <= report.outputs <= weights + 64
    assert report.total == weights + batch_share + report.outputs + report.temporaries + report.code - weights
    assert report.flops >= 2 * 2 * 2 * 128 * 64, "forward and backward products over two images a device"
    assert {c.kind for c in report.collectives} == {"all-reduce"}
    assert sum(c.num_bytes for c in report.collectives) == weights + 4, "the gradient and the loss"
    text = ahead.format_report(report)
    assert "8 x cpu" in text
    assert "all-reduce" in text
    assert "FAULT" not in text


def test_the_report_for_a_tpu_has_rooflines():
    report = dataclasses.replace(
        compile_toy(lambda batch: 0.0),
        device_kind="TPU v5 lite",
        images=32,
        flops=197e9,  # 1 ms of a v5e
        bytes_accessed=8.19e9,  # 10 ms
        collectives=(hlo.Collective("all-reduce", 8 * 10**8, ""),),  # 7 ms: each of 8 chips sends 7/4 of it at 200 GB/s
    )
    lines = {line[:40].strip(): line[40:].strip() for line in ahead.format_report(report).splitlines()}
    assert lines["8 x v5e, limited by memory"].split() == ["10.0,", "3,200"]
    assert lines["8 x v6e, limited by memory"].split() == ["5.0,", f"{32 * 1640 / 8.19:,.0f}"]
    found = roofline(CHIPS["TPU v5 lite"], report.flops, report.bytes_accessed, [8e8], devices=8)
    assert (found.products, found.memory, found.links) == pytest.approx((1e-3, 10e-3, 7e-3))
    assert "limited by" not in ahead.format_report(compile_toy(lambda batch: 0.0)), "of the CPU, nothing is known"


def test_flops_are_those_of_one_device_where_its_peak_is_known(monkeypatch):
    mesh = make_mesh(ahead.topology_devices("cpu:8"))
    batch = jax.ShapeDtypeStruct((16, 128), jnp.float32, sharding=batch_sharding(mesh))
    weights = jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=replicated(mesh))
    product = jax.jit(jnp.matmul)
    assert ahead.flops_per_device(product, (batch, weights), mesh) is None
    monkeypatch.setattr(ahead, "peak_flops", lambda kind: 1e12)
    assert ahead.flops_per_device(product, (batch, weights), mesh) == 2 * 2 * 128 * 64, "two of the rows"


def test_one_device_needs_no_collective():
    report = compile_toy(lambda batch: 0.0, devices=1)
    assert report.collectives == ()
    assert "none" in ahead.format_report(report)


def _print_mean(batch):
    jax.debug.print("{}", batch.mean())
    return 0.0


@pytest.mark.parametrize(
    ("extra", "fault", "culprit"),
    [
        (_print_mean, "calls back to the host", "debug_print"),
        (lambda batch: jnp.sort(batch.ravel())[3], "other than by all-reduce", "all-gather of 8,192 bytes"),
    ],
)
def test_a_fault_is_named_with_its_source(extra, fault, culprit):
    report = compile_toy(extra)
    (line,) = report.faults
    assert fault in line
    assert culprit in line
    assert "test_ahead.py:" in line
    assert f"FAULT: the step {line}" in ahead.format_report(report)


def test_float64_is_a_fault():
    with jax.enable_x64(True):
        report = compile_toy(lambda batch: 0.0, dtype=jnp.float64)
    (line,) = report.faults
    assert line.startswith("computes in float64")


def tiny_config(**method):
    config = demo.get_config().unlock()
    config.update({"batch_size": 2, "method": method})
    config.data.crop_size = 65  # so that each tap of the dilated convolutions reads the image, and has a gradient
    return config.lock()


def test_the_real_supervised_step_is_clean():
    report = compile_config(tiny_config(name="supervised", ood="none"), "cpu:2")
    assert report.faults == ()
    assert report.devices == 2
    assert report.donated > 8 * report.parameters, "parameters, momentum and statistics are all donated"
    assert sum(c.num_bytes for c in report.collectives) > 4 * report.parameters


@pytest.mark.slow
def test_the_real_semiovs_step_is_clean():
    report = compile_config(tiny_config(), "cpu:2")
    assert report.faults == ()
    assert {c.kind for c in report.collectives} == {"all-reduce"}


def test_a_batch_that_the_devices_do_not_divide():
    with pytest.raises(InputError, match=r"batch_size=2 cannot be split over 8 devices.*such as --config.batch_size=8"):
        compile_config(tiny_config(), "cpu:8")


def test_more_fake_devices_than_there_are():
    with pytest.raises(InputError, match="device_count=4096"):
        ahead.topology_devices("cpu:4096")


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs libtpu; run pip install '\.\[tpu\]'"):
        ahead.topology_devices("v5e:2x4")


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("INVALID_ARGUMENT: Invalid TPU external name: TPU banana", "pass one such as v5e:2x2"),
        ("ABORTED: Internal error when accessing libtpu multi-process lockfile.", "wait until it ends"),
    ],
)
def test_a_topology_that_libtpu_refuses(monkeypatch, message, fix):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(ahead.topologies, "get_topology_desc", refuse)
    with pytest.raises(InputError, match=f"--topology=banana:2x2: .*{fix}"):
        ahead.topology_devices("banana:2x2")


def test_the_compiler_for_tpus_gets_no_flags_that_are_for_this_host(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(ahead.topologies, "get_topology_desc", lambda **_: SimpleNamespace(devices=[]))
    for flags, left in ((CPU_FLAGS, None), ("--xla_dump_to=here", "--xla_dump_to=here")):
        monkeypatch.setenv("XLA_FLAGS", flags)
        ahead.topology_devices("v5e:2x2")
        assert os.environ.get("XLA_FLAGS") == left


@pytest.mark.parametrize("error", ["RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 15.75G"])
def test_a_step_that_does_not_fit_says_what_to_make_smaller(error):
    class Step:
        def lower(self, *arguments):
            raise jax.errors.JaxRuntimeError(error)

    mesh = make_mesh(ahead.topology_devices("cpu:1"))
    with pytest.raises(InputError, match=r"does not fit .*Used 20G of 15\.75G\n.*batch_size"):
        ahead.report_step(Step(), (), mesh)


def test_the_command_prints_an_input_error_and_exits_with_2():
    command = [sys.executable, "-m", "semiovs_jax.compile", "--config=configs/demo.py", "--topology=cpu:3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert "error: config.batch_size=8 cannot be split over 3 devices" in done.stderr
