"""CLIP's towers, the key tables of its published weights, and its weight file."""
