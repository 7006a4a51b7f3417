"""Train the CIFAR-10 networks of docs/reproduction.md: alphas and seeds, robust training, and the zoo.

    python examples/cifar10_networks.py RUNS --data-root DIR                     # three small runs, minutes
    python examples/cifar10_networks.py RUNS --data-root DIR --full              # the 77 networks of the page
    python examples/cifar10_networks.py RUNS --data-root DIR --full --share 0 4  # every fourth of them

DIR contains `cifar-10-batches-py`. `--full` trains the networks that the page reports, with the same options:
62 of the sweep, 10 with AugMix or PGD training, and the five of the zoo. Runs are ordered by seed, so an
interrupted sweep is a balanced design; an interrupted run resumes. Several processes with separate shares use
a GPU better than one process: fifteen on one H200 took seven minutes of training for all. On a processor
one epoch takes minutes and the sweep days. The next steps are `cifar10_measures.py`, `cifar10_selectivity.py`
and `cifar10_units.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import probekit as pk

RECIPE = "resnet20-cifar10-short"
SEEDS = {-20.0: 3, -5.0: 3, -2.0: 8, -1.0: 8, -0.4: 8, 0.0: 8, 0.4: 7, 0.7: 7, 1.0: 7, 2.0: 3}
ROBUST: dict[str, dict[str, Any]] = {"augmix": {"augmix": 3}, "pgd": {"pgd": (4 / 255, 3)}}
SMALL = {"epochs": 1, "limit": 2560, "validation": 500}


def warmed_up(alpha: float) -> dict[str, Any]:
    """Options for alpha, with a warm-up over three epochs if it is far below zero."""
    return {"alpha_schedule": f"0>{alpha:g}*3 {alpha:g}"} if alpha <= -5 else {"alpha": alpha}


def small() -> list[tuple[str, int, dict[str, Any]]]:
    """Name, seed and options of three runs that show that everything works."""
    return [(f"a{alpha:g}_s0", 0, {"alpha": alpha, **SMALL}) for alpha in (-1.0, 0.0, 1.0)]


def full() -> list[tuple[str, int, dict[str, Any]]]:
    """Name, seed and options of the networks of the page."""
    sweep = [
        (f"a{alpha:g}_s{seed}", seed, {"epochs": 10, **warmed_up(alpha)})
        for seed in range(8)
        for alpha, seeds in SEEDS.items()
        if seed < seeds
    ]
    robust = [
        (f"{name}_s{seed}", seed, {"epochs": 10, **ROBUST[name]})
        for seed in range(5)
        for name in ROBUST
    ]
    alphas = (-2.0, -1.0, 0.0, 1.0, 2.0)
    return [*sweep, *robust, *((f"zoo_a{a:g}", 0, {"epochs": 36, "alpha": a}) for a in alphas)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="where the runs are stored")
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    parser.add_argument("--full", action="store_true", help="all networks of the page")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("NUMBER", "OF"))
    parser.add_argument("--device", help="cpu, cuda, ...")
    asked = parser.parse_args()
    number, of = asked.share
    for name, seed, options in (full() if asked.full else small())[number::of]:
        run = pk.train(
            RECIPE, seed=seed, out=asked.runs / name, data_root=asked.data_root,
            device=asked.device, **options,
        )  # fmt: skip
        print(f"{name}: {run.test_accuracy:.4f}, selectivity {run.selectivity_mean:.3f}")


if __name__ == "__main__":
    main()
