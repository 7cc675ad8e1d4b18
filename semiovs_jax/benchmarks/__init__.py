"""Benchmarks of the project. Each one is a command."""
