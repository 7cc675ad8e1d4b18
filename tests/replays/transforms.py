"""Replays the transforms golden: resize, crop and flip on the host, photometric views on the device."""

import numpy as np

from data_pipelines.images import transforms
from data_pipelines.images.resampling import bilinear_window, nearest_window
from tests.golden import Golden
from tests.replays.transforms_device import device_outputs


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Computes every key that the golden's `meta` describes; images are uint8 in either precision."""
    del double
    return host_outputs(golden) | device_outputs(golden)


def host_outputs(golden: Golden) -> dict[str, np.ndarray]:
    """Computes resize/*, crop/*, hflip/* and the weak views of item/*."""
    outputs = {}
    for case in golden.meta["resize"]:
        image, label = golden[f"img_{case['source']}"], golden[f"mask_{case['source']}"]
        size = transforms.scaled_size(*label.shape, case["long_side"])
        outputs[f"{case['key']}_img"] = bilinear_window(image, size, *_whole(size))
        outputs[f"{case['key']}_mask"] = nearest_window(label, size, *_whole(size))
    for case in golden.meta["crop"]:
        image, label = golden[f"img_{case['source']}"], golden[f"mask_{case['source']}"]
        geometry = transforms.Geometry(label.shape, case["y"], case["x"])
        outputs[f"{case['key']}_img"] = transforms.view_image(image, geometry, case["size"])
        outputs[f"{case['key']}_mask"] = transforms.view_plane(label, geometry, case["size"], case["ignore_value"])
    image, label = golden["img_land"], golden["mask_land"]
    outputs["hflip/img"] = bilinear_window(image, label.shape, *_whole(label.shape), mirrored=True)
    outputs["hflip/mask"] = nearest_window(label, label.shape, *_whole(label.shape), mirrored=True)
    for item in golden.meta.get("items", ()):
        outputs |= _weak_view(golden, item)
    return outputs


def _whole(size: transforms.Size) -> tuple[slice, slice]:
    return slice(0, size[0]), slice(0, size[1])


def _weak_view(golden: Golden, item: dict) -> dict[str, np.ndarray]:
    """The crop of a whole item, from the stored draws."""
    image, label = golden[f"img_{item['source']}"], golden[f"mask_{item['source']}"]
    draws, crop_size, key = _Draws(item["draws"]), item["crop_size"], item["key"]
    geometry = transforms.draw_geometry(draws, label.shape, crop_size, (0.5, 2.0))
    view = transforms.view_image(image, geometry, crop_size)
    if item["mode"] == "train_l":
        return {f"{key}_img": view, f"{key}_mask": transforms.view_plane(label, geometry, crop_size, 255)}
    if item["mode"] == "train_u":
        return {f"{key}_w": view, f"{key}_ignore": np.where(transforms.view_valid(geometry, crop_size), 0, 255)}
    return {f"{key}_w": view}


class _Draws:
    """Stands in for a numpy Generator: gives the stored draws in order."""

    def __init__(self, draws: list):
        self._values = (draw[-1] for draw in draws)

    def integers(self, low: int, high: int, endpoint: bool) -> int:
        return next(self._values)

    def random(self) -> float:
        return next(self._values)
