"""Labels the OOD images once, before training."""
