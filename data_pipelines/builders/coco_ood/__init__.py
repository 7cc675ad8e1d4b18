"""The TFDS builder coco_ood."""
