"""XLA's flags for tests, which spend most of their time compiling."""

import jaxlib.version

# A train step compiles in half of the time: without LLVM's optimizations, and with XLA's older emitter of fusions.
# Newer versions of XLA lack it, and end a process that has its flag.
_OLDER_EMITTER = ("--xla_cpu_use_fusion_emitters=false",) if jaxlib.version.__version_info__ < (0, 11) else ()

FAST_COMPILATION = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        *_OLDER_EMITTER,
    )
)
