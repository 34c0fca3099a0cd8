"""Passes in random orders: ``python tests/pass_orders.py [--seed N] [--count N] [MODEL …]``.

What says how numbers are rounded, then every other canonical pass, once or twice and in an order that is drawn, then what code generation needs: a
model of the zoo compiled so is held to what ``zoo_sweep.py`` holds it to.
"""

from __future__ import annotations

import argparse
import random
import sys
from unittest import mock

import zoo_sweep
from zoo_models import FOLDER

from compiler import pipeline
from passes.base import Pass

PASSES = tuple(dict.fromkeys(pipeline.free_passes(3)))
"""Every canonical pass that has no place of its own."""


def order(seed: int) -> tuple[Pass, ...]:
    """The canonical passes in an order that seed determines, some of them twice."""
    rng = random.Random(seed)
    chosen = [*PASSES, *rng.sample(PASSES, rng.randint(0, len(PASSES)))]
    rng.shuffle(chosen)
    return (*pipeline.rounding_passes(3), *chosen)


def compare(name: str, seed: int) -> tuple[float, float]:
    """How far a model, compiled with its passes in that order, is from ONNX Runtime, and the bound for that."""
    with mock.patch.object(pipeline, "canonical_passes", return_value=order(seed)):
        worst, bound, _ = zoo_sweep.compare(name)
    return worst, bound


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/pass_orders.py", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first model's order; each next one has the next")
    parser.add_argument("--count", type=int, default=50, help="models drawn where none is named")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_args()
    sys.path.insert(0, str(FOLDER))
    import zoo

    names = options.models or random.Random(options.seed).sample(zoo.names(), options.count)
    failed = 0
    for seed, name in enumerate(names, options.seed):
        worst, bound = compare(name, seed)
        failed += worst > bound
        print(f"{name:32} order {seed}: {worst:.2e} of the scale, bound {bound:.1e}{'' if worst <= bound else '  TOO FAR OFF'}", flush=True)
    print(f"{failed} of {len(names)} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
