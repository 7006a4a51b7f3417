"""Bias of the plain index, coverage of the intervals, and effect of half precision.

Prints the tables of docs/uncertainty.md:

    python benchmarks/uncertainty.py bias         units of known index, 5 to 1,000 samples per class
    python benchmarks/uncertainty.py chance       p-values of units without class information
    python benchmarks/uncertainty.py coverage     intervals of units, layers and the network
    python benchmarks/uncertainty.py model        the bundled model on subsets of its test set
    python benchmarks/uncertainty.py precision    the bundled model under autocast
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

import probekit as pk
from probekit.metrics.selectivity.index import SelectivityIndex

CLASSES = 10
SIZES = (5, 20, 50, 1000)


def flat(units: int, random: np.random.Generator) -> np.ndarray:
    """Class means of units without class information."""
    return np.ones((units, CLASSES))


def one(units: int, random: np.random.Generator) -> np.ndarray:
    """Class means of units that prefer one class: an index of 2/3."""
    means = np.full((units, CLASSES), 0.3)
    means[np.arange(units), random.integers(0, CLASSES, units)] = 1.5
    return means


def graded(units: int, random: np.random.Generator) -> np.ndarray:
    """Class means of units that respond to all classes to different degrees."""
    return random.gamma(4, 0.25, (units, CLASSES))


def several(units: int, random: np.random.Generator) -> np.ndarray:
    """Class means of units that prefer several classes equally."""
    means = np.where(random.random((units, CLASSES)) < 0.3, 1.0, 0.02)
    means[:, 0] = 1.0
    return means


POPULATIONS = {"none": flat, "one class": one, "graded": graded, "several classes": several}


def sample(means: np.ndarray, size: int, random: np.random.Generator) -> tuple[Tensor, ...]:
    """Activations, labels and indices of a balanced sample.

    A unit's activation is its class mean times lognormal noise (coefficient of variation 0.8). Half of
    the noise variance is shared by all units of a sample.
    """
    units, classes = means.shape
    common = random.standard_normal((classes, size, 1))
    own = random.standard_normal((classes, size, units))
    noise = np.exp((common + own) / 2 - 0.25)
    activations = torch.from_numpy((noise * means.T[:, None]).reshape(-1, units))
    labels = torch.arange(classes).repeat_interleave(size)
    return activations, labels, torch.arange(len(labels))


def evaluate(metric: pk.Selectivity, fed: tuple[Tensor, ...]) -> tuple[xr.Dataset, xr.Dataset]:
    """The values of a metric for one layer."""
    needs = [need.fresh() for need in metric.needs]
    for need in needs:
        if hasattr(need, "expect"):
            need.expect(fed[1])
        need.update(*fed)
    units, layers = metric.evaluate(*[need.to_xarray() for need in needs])
    layers = layers.expand_dims(layer=["a"])
    units = units.assign_coords(layer=("unit", ["a"] * units.sizes["unit"]))
    network = xr.Dataset()
    if hasattr(metric, "conclude"):
        for table, more in zip(
            (units, layers, network), metric.conclude(units, layers), strict=True
        ):
            table.update(more)
    return units, layers


def row(*cells: object) -> None:
    """Prints one row of a Markdown table and flushes it, because some rows take minutes."""
    print(
        "|",
        " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells),
        "|",
        flush=True,
    )


def header(*cells: str) -> None:
    """Prints the header of a Markdown table."""
    row(*cells)
    row(*["---"] * len(cells))


def bias(repeats: int) -> None:
    """Mean estimates of the index compared with the true value."""
    header("prefers", "samples a class", "true", "plain", "chance", "split-half")
    for kind, population in POPULATIONS.items():
        for size in SIZES:
            random = np.random.default_rng(size)
            found = []
            for seed in range(max(2, repeats // max(1, size // 20))):
                means = population(30, random)
                fed = sample(means, size, random)
                plain, _ = evaluate(pk.Selectivity(), fed)
                half, _ = evaluate(pk.SplitHalf(seed=seed), fed)
                chance, _ = evaluate(pk.SelectivityChance(permutations=20, seed=seed), fed)
                found.append(
                    [
                        SelectivityIndex().at(means).mean(),
                        float(plain["selectivity"].mean()),
                        float(chance["selectivity_chance"].mean()),
                        float(half["selectivity_split_half"].mean()),
                    ]
                )
            row(kind, f"{size:,}", *map(float, np.mean(found, 0)))


def chance(repeats: int) -> None:
    """p-values of units without class information, from samples with independent units."""
    header("samples a class", "units", "share of p <= 0.05", "KS test of uniformity, p")
    for size in (5, 20, 50):
        random = np.random.default_rng(size)
        p: list[float] = []
        for seed in range(repeats):
            noise = torch.from_numpy(random.exponential(size=(CLASSES * size, 20)))
            labels = torch.arange(CLASSES).repeat_interleave(size)
            metric = pk.SelectivityChance(seed=seed)
            units, _ = evaluate(metric, (noise, labels, torch.arange(len(labels))))
            p.extend(units["selectivity_p"].values)
        row(
            size,
            len(p),
            float(np.mean(np.array(p) <= 0.05)),
            float(stats.kstest(p, "uniform").pvalue),
        )


def coverage(repeats: int) -> None:
    """How often 95% intervals cover the index of the population's class means."""
    header("prefers", "samples a class", "units", "too low", "too high", "width",
           "layer means", "width", "percentile, units")  # fmt: skip
    for kind, population in POPULATIONS.items():
        for size in (5, 10, 20, 50, 200):
            random = np.random.default_rng(size)
            found = [_covered(population, size, seed, random) for seed in range(repeats)]
            row(kind, size, *map(float, np.mean(found, 0)))


def _covered(
    population: Callable[..., np.ndarray], size: int, seed: int, random: np.random.Generator
) -> list[float]:
    means = population(30, random)
    truth, fed = SelectivityIndex().at(means), sample(means, size, random)
    units, layers = evaluate(pk.SelectivityInterval(seed=seed), fed)
    low, high = (units[f"selectivity_{end}"].values for end in ("low", "high"))
    first, last = (float(layers[f"selectivity_mean_{end}"][0]) for end in ("low", "high"))
    bootstrap = pk.SelectivityInterval(seed=seed).needs[1]
    bootstrap.update(*fed)
    drawn = SelectivityIndex().at(bootstrap.to_xarray()["class_mean"].values)
    least, most = np.quantile(drawn, [0.025, 0.975], axis=0)
    # A population index of exactly 0 or 2/3 may differ from an end by rounding error.
    below, above = low > truth + 1e-9, high < truth - 1e-9
    return [
        np.mean(~below & ~above),
        np.mean(above),
        np.mean(below),
        np.mean(high - low),
        float(first <= truth.mean() <= last),
        last - first,
        np.mean((least <= truth) & (truth <= most)),
    ]


def model(repeats: int) -> None:
    """The bundled model: the network's mean index on subsets of its test set."""
    network = pk.load_model("probekit:resnet20-fashion-mnist")
    recording = pk.record(network, pk.load_data("fashion-mnist", network), batch_size=256)
    table = torch.from_numpy(recording["activation"].values)
    labels = torch.from_numpy(recording["label"].values)
    names = recording["layer"].values
    header(
        "samples a class",
        "plain",
        "chance",
        "split-half",
        "reliability",
        "units, mean |plain - all|",
    )
    everything = None
    for size in (1000, 50, 20, 5):
        random = np.random.default_rng(size)
        found = []
        for seed in range(1 if size == 1000 else repeats):
            rows = np.concatenate(
                [random.permutation(np.flatnonzero(labels == c))[:size] for c in range(CLASSES)]
            )
            fed = (table[rows], labels[rows], torch.arange(len(rows)))
            plain = evaluate(pk.Selectivity(), fed)[0]["selectivity"].values
            everything = plain if everything is None else everything
            null = evaluate(pk.SelectivityChance(50, seed), fed)[0]["selectivity_chance"].values
            half = evaluate(pk.SplitHalf(seed=seed), fed)[0]["selectivity_split_half"].values
            layers = [names == name for name in dict.fromkeys(names)]
            reliability = [
                float(evaluate(pk.SplitHalf(seed=seed), (fed[0][:, torch.from_numpy(units)], *fed[1:]))[1]
                      ["selectivity_reliability"][0])
                for units in layers
            ]  # fmt: skip
            means = [np.mean([v[units].mean() for units in layers]) for v in (plain, null, half)]
            found.append([*means, np.mean(reliability), abs(plain - everything).mean()])
        row(f"{size:,}", *map(float, np.mean(found, 0)))


def precision(repeats: int) -> None:
    """The bundled model on its whole test set, under autocast."""
    network = pk.load_model("probekit:resnet20-fashion-mnist")
    data = pk.load_data("fashion-mnist", network)
    results = {}
    header("precision", "network mean", "accuracy", "units, median change", "units, largest change",
           "other preferred class", "seconds")  # fmt: skip
    for kind in (None, "bfloat16", "float16"):
        start = time.perf_counter()
        results[kind] = pk.analyze(network, data, batch_size=250, progress=False, precision=kind)
        seconds = time.perf_counter() - start
        units, plain = results[kind]["units"], results[None]["units"]
        change = abs(units["selectivity"] - plain["selectivity"])
        moved = int((units["preferred_class"] != plain["preferred_class"]).sum())
        root = results[kind]
        numbers = (root["selectivity_mean"], change.median(), change.max())
        mean, median, largest = (f"{float(number):.6f}" for number in numbers)
        row(kind or "float32", mean, float(root["accuracy"]).__format__(".4f"), median, largest,
            f"{moved} of {units.sizes['unit']}", f"{seconds:.0f}")  # fmt: skip


SECTIONS: dict[str, tuple[Callable[[int], None], int]] = {
    "bias": (bias, 100),
    "chance": (chance, 100),
    "coverage": (coverage, 200),
    "model": (model, 10),
    "precision": (precision, 1),
}


def main(arguments: Iterable[str] | None = None) -> None:
    """Prints one table, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", nargs="?", choices=SECTIONS)
    parser.add_argument("--repeats", type=int, help="samples a row; more are more exact")
    options = parser.parse_args(None if arguments is None else list(arguments))
    for name in [options.section] if options.section else SECTIONS:
        section, repeats = SECTIONS[name]
        print(f"\n{name}: {section.__doc__}\n", flush=True)
        section(options.repeats or repeats)


if __name__ == "__main__":
    main()
