"""Writes the model of a run for use without this package: the model, a manifest, and one module a format."""
