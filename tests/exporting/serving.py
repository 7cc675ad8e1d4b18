"""Runs an example of serving in a process that must not import some packages."""

import subprocess
import sys
from pathlib import Path

from PIL import Image


def serve(example: Path, exported: Path, folder: Path, without: tuple[str, ...]) -> tuple[Image.Image, str]:
    """Serves a picture.

    Args:
      example: the script, of 30 lines at most.
      exported: folder of the exported model.
      folder: where image.png and out.png, the labels, are written.
      without: packages that must not be imported.

    Returns:
      The picture, and what the script prints.
    """
    image = Image.effect_mandelbrot((50, 41), (-2, -1, 1, 1), 50).convert("RGB")
    image.save(folder / "image.png")
    script = example.read_text()
    assert len(script.splitlines()) <= 30
    code = f"import sys; sys.argv = {[str(example), str(exported), 'image.png', 'out.png']!r}\n{script}"
    code += f"\nassert not [name for name in sys.modules if name.startswith({without!r})]"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return image, done.stdout
