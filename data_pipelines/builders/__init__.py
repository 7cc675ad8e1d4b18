"""TFDS builders: datasets as ArrayRecord files of encoded images, made and read without TensorFlow."""
