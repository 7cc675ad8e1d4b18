"""Measures layers with a form of their own for the CPU beside their plain form: python -m semiovs_jax.benchmarks.forms.

Of each form, the forward and the backward pass. The forms take turns, and what is compared is core-seconds: the ratio
depends little on the machine and on what else runs there. The exit status is 1 if a form is not faster than the plain
one by a tenth: then its code is no longer worth having, or something has made it slow.
"""

import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import app

from data_pipelines.command import closed_output_ends
from semiovs_jax.benchmarks.timing import repeat
from semiovs_jax.runtime.command import tune_process

_ROUNDS, _TURN_SECONDS = 5, 0.2
_LEAST_GAIN = 0.1


class Forms(NamedTuple):
    """Two forms of a layer, functions of the same arrays.

    Attributes:
      own: the form for the CPU.
      plain: the plain one.
      shapes: of the arrays, float32.
    """

    own: Callable[..., Any]
    plain: Callable[..., Any]
    shapes: Sequence[tuple[int, ...]]


def layers() -> dict[str, Forms]:
    """The forms by name, at sizes of ResNet-50 and ViT-B/16."""
    from semiovs_jax.models import attention, convolution, pooling, upsampling

    return {
        "dilated convolution": Forms(
            functools.partial(convolution._sum_of_products, dilation=12),
            functools.partial(convolution._convolve, stride=1, dilation=12),
            [(4, 11, 11, 2048), (3, 3, 2048, 256)],
        ),
        "max pooling": Forms(pooling._max_of_shifts, pooling._pool, [(4, 81, 81, 128)]),
        "attention": Forms(
            functools.partial(attention._attend_in_turn, precision=None),
            functools.partial(attention._attend, precision=None),
            [(12, 4, 577, 64)] * 3,
        ),
        "corner convolution": Forms(
            upsampling.convolve_corners,
            _convolve_and_pad,
            [(8, 41, 41, 64), (2, 2, 64, 128)],
        ),
    }


def _convolve_and_pad(x: Any, kernel: Any) -> Any:
    """`convolve_corners` as one convolution that pads."""
    import jax

    border = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), border, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def measure(forms: Forms) -> list[float]:
    """Core-seconds of the form for the CPU over those of the plain one, in each round."""
    own, plain = (_compile(form, forms.shapes) for form in (forms.own, forms.plain))
    turns = ((repeat(own, _TURN_SECONDS), repeat(plain, _TURN_SECONDS)) for _ in range(_ROUNDS))
    return [ours.core_seconds / ours.batches * theirs.per_core_second for ours, theirs in turns]


def _compile(form: Callable[..., Any], shapes: Sequence[tuple[int, ...]]) -> Callable[[], Any]:
    """A call of the compiled forward and backward pass, after one that is not measured."""
    import jax
    import jax.numpy as jnp

    arrays = [jax.random.normal(jax.random.key(index), shape) for index, shape in enumerate(shapes)]
    gradient = jnp.ones(jax.eval_shape(form, *arrays).shape)

    @jax.jit
    def both(gradient: Any, *arrays: Any) -> Any:
        result, backward = jax.vjp(form, *arrays)
        return result, backward(gradient)

    def call() -> Any:
        return jax.block_until_ready(both(gradient, *arrays))

    call()
    return call


def main(argv: Sequence[str]) -> None:
    """Prints the ratios, a line a layer."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    slow = []
    print("core-seconds of the form for the CPU over those of the plain form: median (least to most)")
    for name, forms in layers().items():
        ratios = measure(forms)
        median = statistics.median(ratios)
        print(f"{name:<20} {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
        if median > 1 - _LEAST_GAIN:
            slow.append(name)
    if slow:
        print(f"not faster than the plain form: {', '.join(slow)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    tune_process()
    with closed_output_ends():
        app.run(main)
