"""SemiOVS in JAX: semi-supervised segmentation with open-vocabulary pseudo-labels."""
