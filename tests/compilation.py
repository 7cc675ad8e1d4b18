"""XLA's flags for tests, which spend most of their time compiling."""

FAST_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
)
"""A train step compiles in half of the time: without LLVM's optimizations, and with XLA's older emitter of fusions."""
