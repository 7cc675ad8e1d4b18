"""Checkpoints: written in the background, verified before they are restored."""
