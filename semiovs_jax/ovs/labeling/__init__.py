"""Labeling the OOD images once, before training."""
