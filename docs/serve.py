"""Labels an image with an exported model: python serve.py EXPORTED IMAGE OUT.png.

EXPORTED is a folder of `semiovs_jax.export --format=stablehlo`. Needs jax, flatbuffers, numpy and pillow.
"""

import json
import sys
from pathlib import Path

import jax.export
import numpy as np
from PIL import Image, ImageOps


def main(exported: str, source: str, out: str) -> None:
    """Writes the labels as a palette PNG."""
    manifest = json.loads((Path(exported) / "manifest.json").read_text())
    model = jax.export.deserialize(bytearray((Path(exported) / manifest["file"]).read_bytes()))
    image = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
    step, free = manifest["size_multiple"], manifest["inputs"]["image"]["shape"][1:3]  # free sides are strings
    own = [max(step, round(side / step) * step) for side in (image.height, image.width)]
    height, width = (side if isinstance(side, int) else mine for side, mine in zip(free, own, strict=True))
    label, confidence = model.call(np.asarray(image.resize((width, height)))[None])
    picture = Image.fromarray(np.asarray(label[0])).resize(image.size, Image.Resampling.NEAREST)
    picture.putpalette(np.array(manifest["palette"], np.uint8).tobytes())
    picture.save(out, bits=8)
    print(*(manifest["classes"][index] for index in np.unique(picture)), f"confidence {confidence.mean():.2f}")


main(*sys.argv[1:])
