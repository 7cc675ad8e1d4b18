"""A worker of `test_turns`: counts steps and notes when it was called."""

import os
import sys
from pathlib import Path

from semiovs_jax.benchmarks.turns import serve


class Toy:
    def __init__(self):
        self._steps = 0

    def measure(self, steps: int) -> int:
        side, log = sys.argv[1:]
        with Path(log).open("a") as file:
            print(side, file=file)
        print("measured")
        self._steps += steps
        return self._steps

    def fail(self, value: int) -> None:
        raise ValueError(value)

    def leave(self, status: int) -> None:
        os._exit(status)

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


if __name__ == "__main__":
    serve(Toy)
