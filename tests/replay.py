"""Replays a golden with this project's code: python -m tests.replay GOLDEN.npz OUT.npz [--f64] [--iterations N]

Reads the golden's `shapes`, `meta` and inputs, never its expected values; converts formula-made weights with
the real conversion code, runs the real model, losses or train step, and writes the results under the
golden's own key names.
"""

import argparse
import importlib
import os
import pkgutil


def main() -> None:
    """Parses the command line, replays one golden and writes OUT.npz."""
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__.splitlines()[0])
    parser.add_argument("golden")
    parser.add_argument("out")
    parser.add_argument("--f64", action="store_true", help="compute in float64")
    parser.add_argument("--iterations", type=int, help="stop after so many of SemiVL's; writes what they give")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.f64:
        os.environ["JAX_ENABLE_X64"] = "1"

    import numpy as np

    from tests import replays
    from tests.golden import Golden, family

    modules = {module.name: module for module in pkgutil.iter_modules(replays.__path__)}
    name = family(args.golden, modules)
    replay = importlib.import_module(f"tests.replays.{name}").replay
    options = {"iterations": args.iterations} if args.iterations else {}
    outputs = replay(Golden(args.golden), args.f64, **options)
    np.savez_compressed(args.out, **outputs)
    print(f"{name}: wrote {len(outputs)} arrays to {args.out}")


if __name__ == "__main__":
    main()
