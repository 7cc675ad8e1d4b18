"""Every test runs on the CPU, on eight fake devices so that sharding is real."""

import os

from semiovs_jax.runtime import CPU_FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"{CPU_FLAGS} --xla_force_host_platform_device_count=8")
