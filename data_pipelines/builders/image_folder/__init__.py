"""The TFDS builder image_folder."""
