"""Replays a golden with this project's code: python -m tests.replay GOLDEN.npz OUT.npz [--f64] [--compare]

Reads the golden's `shapes`, `meta` and inputs, never its expected values; converts formula-made weights with
the real conversion code, runs the real model, losses or train step, and writes the results under the
golden's own key names. With --compare, it then reads the expected values and prints how far each result is from
them, the largest share of the published tolerance first; the status is 1 if one is beyond it.
"""

import argparse
import importlib
import os
import pkgutil
import sys


def main() -> None:
    """Parses the command line, replays one golden and writes OUT.npz."""
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__.splitlines()[0])
    parser.add_argument("golden")
    parser.add_argument("out")
    parser.add_argument("--f64", action="store_true", help="compute in float64")
    parser.add_argument("--iterations", type=int, help="stop after so many of SemiVL's; writes what they give")
    parser.add_argument("--compare", action="store_true", help="print the differences; status 1 if one is too large")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.f64:
        os.environ["JAX_ENABLE_X64"] = "1"

    import numpy as np

    from tests import replays
    from tests.golden import Golden, differences, family

    modules = {module.name: module for module in pkgutil.iter_modules(replays.__path__)}
    name = family(args.golden, modules)
    replay = importlib.import_module(f"tests.replays.{name}").replay
    options = {"iterations": args.iterations} if args.iterations else {}
    outputs = replay(Golden(args.golden), args.f64, **options)
    np.savez_compressed(args.out, **outputs)
    print(f"{name}: wrote {len(outputs)} arrays to {args.out}")
    if args.compare:
        found = differences(Golden(args.golden), outputs, args.f64, iterations=args.iterations or 0)
        for difference in sorted(found, key=lambda difference: -difference.share):
            print(f"{'within' if difference.held else 'BEYOND'}  {difference}")
        beyond = sum(not difference.held for difference in found)
        print(f"{len(found) - beyond} of {len(found)} arrays are within the published tolerance")
        sys.exit(1 if beyond or not found else 0)


if __name__ == "__main__":
    main()
