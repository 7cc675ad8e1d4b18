"""PyTorch forms of the project's models and methods, for comparison. They need the extra `bench`, and no JAX."""
