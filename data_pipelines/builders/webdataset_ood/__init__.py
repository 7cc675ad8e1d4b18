"""The TFDS builder webdataset_ood."""
