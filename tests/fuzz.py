"""Fuzzing: damaged and hostile files are read, or refused with an `InputError`.

    python -m tests.fuzz --minutes=10 --seed=0 [--target=NAME]

For each kind of files (see `fuzzing.targets`), valid ones are written, one is changed, and all are read as commands
read them. Any exception but `InputError`, a message that cannot be printed, and a read that takes ten seconds are
failures. Hypothesis makes the changed file as simple as it can; the file is kept below `tests/fuzzing/examples`, which
`tests/test_fuzz.py` tries again. Prints a line for each kind, and ends with status 1 where there are failures.
"""

import argparse
import faulthandler
import resource
import sys

from tests.fuzzing.run import fuzz, kept_examples, workshop
from tests.fuzzing.targets import TARGETS


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--target", choices=TARGETS, help="one target; default: all")
    flags = parser.parse_args()
    faulthandler.enable()  # names the place where a library ends the process
    print("target         kept   examples  failures", flush=True)
    failed = 0
    for name in [flags.target] if flags.target else TARGETS:
        with workshop(name) as shop:
            for example in kept_examples(name):
                shop.try_example(example)
        tried, failures = fuzz(name, seed=flags.seed, seconds=60 * flags.minutes)
        failed += len(failures)
        print(f"{name:<14} {len(kept_examples(name)):>4} {tried:>10,} {len(failures):>9}", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
