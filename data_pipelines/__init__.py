"""Host-side input: datasets, the embedded benchmark, and the Grain streams. Never imports JAX."""

from data_pipelines.startup import end_on_interrupt

end_on_interrupt()
