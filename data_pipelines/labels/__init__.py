"""Cached OVS labels: the folder that labeling writes and training reads."""
