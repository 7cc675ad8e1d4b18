"""Images and label planes: decoding, scaling, cropping."""
