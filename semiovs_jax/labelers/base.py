"""What every labeler is: it turns weak views into pseudo-labels, and may carry a part of the train state."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from data_pipelines.datasets import DatasetInfo
from semiovs_jax.methods.table import Method
from semiovs_jax.models.functional import Functional
from semiovs_jax.ovs.base import PseudoLabel


class View(NamedTuple):
    """The weak view of one stream, and what the batch holds beside it.

    Attributes:
      image: float [N, H, W, 3], normalized.
      crop: uint8 [N, H, W, 3], the same as RGB.
      valid: bool [N, H, W], False on padding.
      label: uint8 [N, H, W], cached labels with the ignore index; None without.
      confidence: uint8 [N, H, W], of the cached labels, 255 is certain; None without.
    """

    image: jax.Array
    crop: jax.Array
    valid: jax.Array
    label: jax.Array | None = None
    confidence: jax.Array | None = None


class Facts(NamedTuple):
    """What a labeler may need to know of its run.

    Attributes:
      dataset: the classes.
      method: the method.
      student: the student as a pure function.
      crop_size: side of the training crops, in pixels.
    """

    dataset: DatasetInfo
    method: Method
    student: Functional
    crop_size: int


class Labeler(abc.ABC):
    """Labels weak views. Without state and always ready, unless a subclass overrides this.

    All methods but the constructor are traced by jit.

    Attributes:
      weights: pytree of frozen arrays, an argument of the compiled step.
    """

    weights: Any = ()

    def init(self, params: Any, batch_stats: Any) -> Any:
        """The labeler's part of the train state before the first update; an empty pytree without one.

        Args:
          params: the student's parameters, or their shapes.
          batch_stats: its running statistics.
        """
        del params, batch_stats
        return ()

    def ready(self, state: Any) -> jax.Array | bool:
        """Whether there are labels yet, bool []. Until then the weights of its terms are 0."""
        del state
        return True

    @abc.abstractmethod
    def label(self, state: Any, weights: Any, views: Mapping[str, View], key: jax.Array) -> dict[str, PseudoLabel]:
        """Labels weak views.

        Args:
          state: the labeler's part of the train state.
          weights: `self.weights`, on the devices.
          views: the weak views by stream.
          key: random key of this step and labeler.

        Returns:
          Labels [N, H, W] by stream, before CutMix.
        """

    def after_update(self, state: Any, params: Any, batch_stats: Any, step: jax.Array) -> Any:
        """The labeler's state after an update of the student.

        Args:
          state: before it.
          params: the student's parameters after the update.
          batch_stats: its running statistics.
          step: int32 [], updates done before this one.
        """
        del params, batch_stats, step
        return state

    def after_evaluation(self, state: Any, params: Any, batch_stats: Any, miou: jax.Array) -> Any:
        """The labeler's state after an evaluation.

        Args:
          state: before it.
          params: the student's parameters.
          batch_stats: its running statistics.
          miou: float [], the evaluated mIoU, in 0..1.
        """
        del params, batch_stats, miou
        return state

    def student_weights(self, state: Any) -> tuple[Any, Any]:
        """(params, batch_stats) of a network with the student's structure, for methods that evaluate this labeler.

        Raises:
          TypeError: the labeler is no such network.
        """
        raise TypeError(f"{type(self).__name__} has no weights of the student's structure to evaluate")
