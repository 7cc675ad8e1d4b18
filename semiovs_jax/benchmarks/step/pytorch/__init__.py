"""The train steps in PyTorch that ours are measured beside. Needs the extra `bench`; imports no JAX."""
