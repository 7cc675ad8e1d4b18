"""The highest rate of matrix products that a device reaches: the ceiling that a step is compared with."""

import time
from collections.abc import Callable

_SIDES = {"cpu": 2048, "gpu": 8192}  # of square matrices, by platform
_REPEATS = 10


def best_rate(multiply: Callable[[], None], side: int, repeats: int = _REPEATS) -> float:
    """FLOPs per second of the fastest of some products, after one that is not timed.

    Args:
      multiply: multiplies two square matrices and waits for the result.
      side: of the matrices.
      repeats: number of products.
    """
    multiply()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def jax_ceiling(dtype: str, products: str, side: int = 0) -> float:
    """FLOPs per second of products in JAX on the first device.

    Args:
      dtype: of the matrices.
      products: their precision, as `config.model.matmul_precision`.
      side: of the matrices; 0 for one that suits the platform.
    """
    import jax
    import jax.numpy as jnp

    side = side or _SIDES.get(jax.default_backend(), 8192)
    left, right = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=products))
    return best_rate(lambda: product(left, right).block_until_ready(), side)


def torch_ceiling(dtype: str, device: str, side: int = 0) -> float:
    """FLOPs per second of products in PyTorch, in the precision that its process has.

    Args:
      dtype: of the matrices.
      device: "cpu" or "cuda".
      side: of the matrices; 0 for one that suits the device.
    """
    import torch

    side = side or _SIDES["gpu" if device == "cuda" else "cpu"]
    left, right = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))

    def multiply() -> None:
        torch.matmul(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    return best_rate(multiply, side)
