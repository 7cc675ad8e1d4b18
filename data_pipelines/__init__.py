"""Host-side input: datasets, the embedded benchmark, and the Grain streams. Never imports JAX."""
