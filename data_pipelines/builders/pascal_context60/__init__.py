"""The TFDS builder pascal_context60."""
