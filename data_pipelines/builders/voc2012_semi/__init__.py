"""The TFDS builder voc2012_semi."""
