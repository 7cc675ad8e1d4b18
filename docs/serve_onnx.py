"""Labels an image with an exported model: python serve_onnx.py EXPORTED IMAGE OUT.png.

EXPORTED is a folder of `semiovs_jax.export --format=onnx`. Needs onnxruntime, numpy and pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(exported: str, source: str, out: str) -> None:
    """Writes the labels as a palette PNG."""
    manifest = json.loads((Path(exported) / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(Path(exported) / manifest["file"])
    image = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
    step, free = manifest["size_multiple"], manifest["inputs"]["image"]["shape"][1:3]  # free sides are strings
    own = [max(step, round(side / step) * step) for side in (image.height, image.width)]
    height, width = (side if isinstance(side, int) else mine for side, mine in zip(free, own, strict=True))
    label, confidence = session.run(["label", "confidence"], {"image": np.asarray(image.resize((width, height)))[None]})
    picture = Image.fromarray(label[0]).resize(image.size, Image.Resampling.NEAREST)
    picture.putpalette(np.array(manifest["palette"], np.uint8).tobytes())
    picture.save(out, bits=8)
    print(*(manifest["classes"][index] for index in np.unique(picture)), f"confidence {confidence.mean():.2f}")


main(*sys.argv[1:])
