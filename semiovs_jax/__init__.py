"""SemiOVS in JAX: semi-supervised segmentation with open-vocabulary pseudo-labels."""

from data_pipelines.startup import end_on_interrupt

end_on_interrupt()
