"""Train the CIFAR-10 networks of docs/reproduction.md: alphas and seeds, robust training, and the zoo.

    python examples/cifar10_networks.py RUNS --data-root DIR                # the sweep, 65 networks
    python examples/cifar10_networks.py RUNS --data-root DIR --part robust  # AugMix and PGD training
    python examples/cifar10_networks.py RUNS --data-root DIR --part zoo     # the five that are bundled
    python examples/cifar10_networks.py RUNS --data-root DIR --share 0 4    # every fourth of them

DIR contains `cifar-10-batches-py`. Runs are ordered by seed, so an interrupted sweep is a balanced
design; an interrupted run resumes. Several processes with separate shares use a GPU better than one
process. With fifteen processes on one GPU, a network of 10 epochs takes a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import probekit as pk

RECIPE = "resnet20-cifar10-short"
INNER = (-2.0, -1.0, -0.4, 0.0, 0.4, 0.7, 1.0)
OUTER = (-20.0, -5.0, 2.0)
ROBUST: dict[str, dict[str, Any]] = {"augmix": {"augmix": 3}, "pgd": {"pgd": (4 / 255, 3)}}
EPOCHS = {"sweep": 10, "robust": 10, "zoo": 36}


def warmed_up(alpha: float) -> dict[str, Any]:
    """Options for alpha, with a warm-up over three epochs if it is far below zero."""
    return {"alpha_schedule": f"0>{alpha:g}*3 {alpha:g}"} if alpha <= -5 else {"alpha": alpha}


def design(part: str) -> list[tuple[str, int, dict[str, Any]]]:
    """Name, seed and options of every run."""
    if part == "zoo":
        return [(f"zoo_a{alpha:g}", 0, {"alpha": alpha}) for alpha in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    if part == "robust":
        return [(f"{name}_s{seed}", seed, ROBUST[name]) for seed in range(10) for name in ROBUST]
    return [
        (f"a{alpha:g}_s{seed}", seed, warmed_up(alpha))
        for seed in range(8)
        for alpha in INNER + (OUTER if seed < 3 else ())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="where the runs are kept")
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    parser.add_argument("--part", choices=EPOCHS, default="sweep")
    parser.add_argument("--epochs", type=int, help="instead of those of the page")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("NUMBER", "OF"))
    parser.add_argument("--precision", help="float32 on a CPU without bfloat16 instructions")
    parser.add_argument("--device", help="cpu, cuda, ...")
    asked = parser.parse_args()
    number, of = asked.share
    for name, seed, options in design(asked.part)[number::of]:
        run = pk.train(
            RECIPE, seed=seed, out=asked.runs / name, data_root=asked.data_root,
            epochs=asked.epochs or EPOCHS[asked.part], precision=asked.precision,
            device=asked.device, **options,
        )  # fmt: skip
        print(f"{name}: {run.test_accuracy:.4f}, selectivity {run.selectivity_mean:.3f}")


if __name__ == "__main__":
    main()
