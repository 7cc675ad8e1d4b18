"""Labeling with an OVS beside PyTorch's."""
