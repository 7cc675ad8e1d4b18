"""TFDS builders: datasets as ArrayRecord files of encoded images, written and read without TensorFlow."""
