"""A trained model, loaded from its run: what `semiovs_jax.load` returns."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import jax
import ml_collections
import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.files import expand
from data_pipelines.images.decode import decode_image
from data_pipelines.sources.records import File
from semiovs_jax.checkpoints.checkpointer import Which, restore_weights
from semiovs_jax.evaluated import open_model
from semiovs_jax.evaluation.inference import Inference
from semiovs_jax.prediction.predictor import Prediction, Predictor
from semiovs_jax.runs import saved_config
from semiovs_jax.runtime.command import set_up_process
from semiovs_jax.runtime.config_keys import change_values
from semiovs_jax.runtime.sharding import make_mesh

Image = np.ndarray | str | Path


class Model:
    """A trained model.

    Attributes:
      dataset: its classes, colors and ignore index.
      step: updates of the checkpoint.
      predictor: the model on the devices.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        source: str | Path,
        which: Which,
        devices: Sequence[jax.Device],
    ):
        """Restores the weights; see `load`.

        Args:
          config: the run's, or one with other values of `config.eval`.
          source: the run's workdir, or one checkpoint in it.
          which: which checkpoint.
          devices: devices of this process.
        """
        mesh = make_mesh(list(devices))
        model = open_model(config, mesh)
        restored = restore_weights(source, model.target, which)
        params, batch_stats = model.weights(restored.state)
        self.dataset: DatasetInfo = model.dataset
        self.step = int(restored.meta["step"])
        self._inference = Inference.create(model.function, config.eval)
        self.predictor = Predictor(
            self._inference,
            params,
            batch_stats,
            mesh,
            config.eval,
            size_multiple=model.student.size_multiple,
        )
        self._weights, self._config = (params, batch_stats), config

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the predictions, as JSON keeps it."""
        model, seen = self._config.model, self._config.eval
        return {
            "step": self.step,
            "weights_sha256": _digest(self._weights),
            "classes": list(self.classes),
            "backbone": model.backbone,
            "dtype": model.dtype,
            "matmul_precision": model.matmul_precision,
            "short_side": seen.short_side,
            "window": seen.window,
            "stride": seen.stride if seen.window else 0,
            "scales": list(self._inference.views.scales),
            "flip": self._inference.views.flip,
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.dataset.classes

    @property
    def palette(self) -> np.ndarray:
        """uint8 [256, 3], the RGB color of each index."""
        return self.dataset.palette

    @overload
    def predict(self, images: Image) -> Prediction: ...

    @overload
    def predict(self, images: list[Image]) -> list[Prediction]: ...

    def predict(self, images: Image | list[Image]) -> Prediction | list[Prediction]:
        """Predicts one image or several, of any sizes.

        A new padded shape is compiled on first use, at most `config.eval.max_shapes` for the images of the first call.
        Pass images of many sizes as one list: later calls with ever larger images compile again.

        Args:
          images: an image, or a list of images: uint8 [H, W, 3] (RGB, upright), or the path of an image file.

        Returns:
          For each image `label` (uint8 [H, W], class indices) and `confidence` (float32 [H, W], 0..1).

        Raises:
          InputError: an image cannot be read, or is another array; no image is predicted then.
          NotFiniteLogitsError: logits of an image are not finite.
        """
        if isinstance(images, np.ndarray | str | Path):
            return self.predictor.predict([_pixels(images, "the image", self.predictor)])[0]
        return self.predictor.predict([_pixels(image, f"image {i}", self.predictor) for i, image in enumerate(images)])


def load(
    run: str | Path,
    which: Which = "best",
    *,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    batch_size: int = 1,
    changes: dict[str, Any] | None = None,
) -> Model:
    """Loads the model of a run, to predict.

        >>> import semiovs_jax
        >>> model = semiovs_jax.load("runs/demo")
        >>> model.classes[:3]
        ('background', 'circle', 'square')
        >>> found = model.predict("photo.jpg")
        >>> found.label.dtype, found.confidence.dtype
        (dtype('uint8'), dtype('float32'))
        >>> colored = model.palette[found.label]  # uint8 [H, W, 3]
        >>> both = model.predict([colored, "photo.jpg"])
        >>> (both[1].label == found.label).all()
        np.True_

    Args:
      run: workdir of the run, or the directory of one checkpoint in it.
      which: "best" by mIoU (the latest if none was evaluated) or "latest".
      scales: factors of the image's size; the probabilities of several are averaged. None: `config.eval.scales`.
      flip: whether each is seen mirrored, too. None: `config.eval.flip`.
      batch_size: images that are computed together, on at most as many devices.
      changes: values of the config to change, by dotted key, such as {"eval.window": 512}.

    Raises:
      InputError: there is no run or checkpoint, or a value is invalid.
    """
    set_up_process()
    if which not in ("best", "latest"):
        raise InputError(f"which={which!r}: choose 'best' or 'latest'")
    config = saved_config.get_config(str(run))
    views = {
        "eval.scales": None if scales is None else tuple(float(scale) for scale in scales),
        "eval.flip": flip,
    }
    given = {key: value for key, value in views.items() if value is not None}
    change_values(config, {"eval.batch_size": batch_size, **given, **(changes or {})})
    return Model(config, run, which, jax.local_devices()[: max(1, batch_size)])


def _pixels(image: Image, name: str, predictor: Predictor) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        name = str(image)
        image = decode_image(File(expand(image)))
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"{name} is {image.dtype}{list(image.shape)}: pass uint8 [H, W, 3], RGB levels of 0 to 255, or a path"
        )
    if fault := predictor.size_fault((image.shape[0], image.shape[1])):
        raise InputError(f"{name}: {fault}")
    return image


def _digest(weights: Any) -> str:
    """Hex SHA-256 of weights, with their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        value = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
