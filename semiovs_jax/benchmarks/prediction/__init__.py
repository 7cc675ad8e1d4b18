"""Measures predicting beside PyTorch: python -m semiovs_jax.benchmarks.prediction."""
