"""Images and label masks: decoding, scaling, cropping."""
