"""Segmentation students, and the image and text towers of open-vocabulary models.

A folder here with a file `student.py` is a family of students (`base.Family`). The families are found when this
package is imported; to add one, add its folder.

Three arguments have the same meaning in every module:
  dtype: dtype of the computation; None for that of the input. Parameters and running statistics stay float32.
  remat: one of `remat.REMATS`, what the backward pass computes again to save memory.
  rngs: random number streams that initialize the parameters.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, cast

from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.base import Family, Student
from semiovs_jax.models.functional import Functional
from semiovs_jax.models.precision import DTYPES, PRECISIONS
from semiovs_jax.models.remat import REMATS

__all__ = ["FAMILIES", "Family", "Functional", "Student", "build_student", "find_families", "student_faults"]


def find_families(package: str, path: Iterable[str]) -> dict[str, Family]:
    """Imports the module `student` of every subpackage that has one.

    Args:
      package: name of the package.
      path: its folders, `__path__`.

    Returns:
      The family of every student, by the student's name.

    Raises:
      ImportError: two families have a student of the same name.
    """
    families: dict[str, Family] = {}
    origin: dict[str, str] = {}
    for subpackage in pkgutil.iter_modules(path, f"{package}."):
        module = f"{subpackage.name}.student"
        if not subpackage.ispkg or importlib.util.find_spec(module) is None:
            continue
        family = cast(Family, importlib.import_module(module))
        for student in family.STUDENTS:
            if student in families:
                raise ImportError(f"{origin[student]} and {module} both have a student {student!r}; rename one")
            families[student], origin[student] = family, module
    return families


FAMILIES = find_families(__name__, __path__)


def student_faults(config: Mapping[str, Any]) -> list[str]:
    """The names in `config.model` that are unknown: of backbone, dtype, matmul_precision and remat."""
    tables = {"backbone": FAMILIES, "dtype": DTYPES, "matmul_precision": PRECISIONS, "remat": REMATS}
    return [
        f"config.model.{key} is {config[key]!r}; choose one of {', '.join(sorted(table))}"
        for key, table in tables.items()
        if key in config and config[key] not in table
    ]


def build_student(config: Mapping[str, Any], num_classes: int, *, image_size: int, rngs: nnx.Rngs) -> Student:
    """Builds a student with random weights.

    Args:
      config: `backbone`, the name of a student; `dtype`, "float32" or "bfloat16" (of convolutions and
        transformers: batch statistics, logits and parameters stay float32); `remat`.
      num_classes: channels of the logits.
      image_size: side of the training crop, in pixels; SemiVL's position table covers it.
      rngs: initialize the parameters.

    Raises:
      InputError: the faults of `student_faults`.
    """
    if faults := student_faults(config):
        raise InputError(*faults)
    name, dtype = config["backbone"], DTYPES[config["dtype"]]
    return FAMILIES[name].build(name, num_classes, image_size=image_size, dtype=dtype, remat=config["remat"], rngs=rngs)
