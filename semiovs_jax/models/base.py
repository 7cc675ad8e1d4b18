"""What training and evaluation need of a student, and what a family of students defines.

A family is a folder of this package with a file `student.py`, a module of type `Family`; see `models/__init__.py`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.weights.keys import Converted


class Student(Protocol):
    """A segmentation network.

    Attributes:
      fixed_size: whether images are evaluated by windows of the training crop's size; otherwise a forward takes
        images of any size.
      size_multiple: the sides of an evaluated image's padded shape are multiples of it, in pixels.
      mixes_images: whether an image's logits depend on the others of its batch in train mode, by batch statistics. A
        student without them is an `IndependentStudent`.
      perturbed_channels: channels of each feature level that `channel_masks` multiply.
      class_embedding_dim: D of the text embeddings [K, D] of the class names that the student reads from its batch
        statistics, under the key "text"; None for a student without text.
    """

    fixed_size: ClassVar[bool]
    mixes_images: ClassVar[bool]
    size_multiple: int
    perturbed_channels: tuple[int, ...]
    class_embedding_dim: int | None

    def __call__(
        self, x: jax.Array, *, channel_masks: tuple[jax.Array, ...] | None = None, size: jax.Array | None = None
    ) -> jax.Array:
        """Computes logits at the resolution of the images.

        Args:
          x: normalized images [N, H, W, 3], floating point.
          channel_masks: float [m, N, C] for each of `perturbed_channels`, m >= 1. The backbone runs once; the decoder
            runs once on m variants of its features, variant i multiplied by mask i. UniMatch's feature perturbation
            is m = 2: ones, and dropout of rate 1/2 as 0 or 2.
          size: true sizes, int32 [N, 2], of images padded on the right and bottom; not for `fixed_size` students.

        Returns:
          Logits [N, H, W, K]; with `channel_masks`, [m, N, H, W, K].
        """
        ...

    @staticmethod
    def parameter_groups(params: dict[Any, Any]) -> dict[Any, Any]:
        """The optimizer's group of every parameter: "backbone", "head" or "frozen", in the structure of `params`."""
        ...


class IndependentStudent(Student, Protocol):
    """A student that does not mix images; its call decodes what it encodes."""

    def encode(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Maps normalized images [N, H, W, 3] to the levels of features [N, h, w, C] that channel masks multiply."""
        ...

    def decode(self, levels: tuple[jax.Array, ...], shape: tuple[int, int]) -> jax.Array:
        """Maps levels of features to logits [N, *shape, K]."""
        ...


class Family(Protocol):
    """The module `student.py` of a family.

    Attributes:
      STUDENTS: architectures by name, the values of `config.model.backbone`.
      WEIGHTS_KIND: `--kind` of `python -m semiovs_jax.convert` for the weights that `load_pretrained` reads.
      STUDENT_KIND: `--kind` of a published student.
      WEIGHTS_SOURCE: which published weights to fetch, for the message about a missing file: "fetch ...".
    """

    STUDENTS: Mapping[str, Any]
    WEIGHTS_KIND: str
    STUDENT_KIND: str
    WEIGHTS_SOURCE: str

    def build(
        self, name: str, num_classes: int, *, image_size: int, dtype: DTypeLike | None, remat: str, rngs: nnx.Rngs
    ) -> Student:
        """Builds the student `name` with random weights; arguments as `build_student`."""
        ...

    def load_pretrained(
        self, path: str, params: dict[Any, Any], batch_stats: dict[Any, Any]
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Replaces the backbone of a student with random weights by pretrained weights.

        Args:
          path: weight file, or name of shipped weights.
          params: parameters of the student.
          batch_stats: running statistics of the student.

        Returns:
          The parameters and running statistics, unchanged outside the backbone.

        Raises:
          InputError: the file is missing, damaged or of another kind, or its tensors are not exactly those of the
            backbone.
        """
        ...

    def state_dict(self, params: dict[Any, Any], batch_stats: dict[Any, Any]) -> dict[str, np.ndarray]:
        """The weights of a student with the names and layouts of the PyTorch code that published it.

        Raises:
          InputError: the family has no such names.
        """
        ...

    def convert_student(self, source: Mapping[str, np.ndarray], name: str) -> Converted:
        """The converter of `STUDENT_KIND`, which reads what `state_dict` returns; see `weights.keys.Converter`."""
        ...
