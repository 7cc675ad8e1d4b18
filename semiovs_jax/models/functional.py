"""A module as a pure function of pure dicts, for jit, grad, sharding and checkpoints."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from semiovs_jax.models.base import Student

PyTree = dict[Any, Any]


@dataclass(frozen=True)
class Functional:
    """The static part of a module; hashable, and so a valid static argument of jit.

    Attributes:
      graphdef: Structure of the module.
      matmul_precision: One of `precision.PRECISIONS`, of the products in the module's call and in its gradient.
      mixes_images: Whether the results of an image depend on the others of its batch in train mode, see `Student`;
        True for a module that does not say.
    """

    graphdef: nnx.GraphDef
    matmul_precision: str = "highest"
    mixes_images: bool = True

    @classmethod
    def create(
        cls, module: nnx.Module | Student, matmul_precision: str = "highest"
    ) -> tuple["Functional", PyTree, PyTree]:
        """Splits a module into its function, its parameters and its batch statistics; the latter are pure dicts."""
        graphdef = nnx.graphdef(module)
        params, batch_stats = nnx.state(module, nnx.Param, nnx.BatchStat)
        function = cls(graphdef, matmul_precision, getattr(module, "mixes_images", True))
        return function, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    def apply(
        self, params: PyTree, batch_stats: PyTree, x: Any, *, train: bool, method: str = "__call__", **kwargs: Any
    ) -> tuple[Any, PyTree]:
        """Calls the module, or a method of it.

        Args:
          params: Pure dict of parameters.
          batch_stats: Pure dict of running statistics.
          x: The method's input.
          train: Whether to normalize with batch statistics and accumulate them.
          method: The method's name.
          **kwargs: Passed to the method.

        Returns:
          The method's outputs, and the running statistics after the call.
        """
        # Merging State objects inside grad is a trace-context error; merging pure dicts is not.
        module = nnx.merge(self.graphdef, params, batch_stats)
        # SemiVL has no batch normalization.
        module = nnx.view(module, use_running_average=not train, raise_if_not_found=False)
        # Products take their precision when they are traced; their gradients keep it.
        with jax.default_matmul_precision(self.matmul_precision):
            outputs = getattr(module, method)(x, **kwargs)
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
