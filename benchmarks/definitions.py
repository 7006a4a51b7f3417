"""The effects of the choices listed in docs/definitions.md, on the bundled model.

    python benchmarks/definitions.py

The output contains all numbers in that page's tables on layers, the index and samples.
"""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

import probekit as pk
from probekit.errors import ProbekitWarning

EPS = (0, 1e-6, 1e-3, 0.01, 0.1)
SAMPLES = (50, 100, 200, 500, 2000, 10_000)


def main() -> None:
    warnings.simplefilter("ignore", ProbekitWarning)
    model = pk.load_model("probekit:resnet20-fashion-mnist")
    data = pk.load_data("fashion-mnist", model)

    def analyze(layers: object = None, **options: object) -> xr.DataTree:
        return pk.analyze(model, data, layers, batch_size=500, **options)  # type: ignore[arg-type]

    found = analyze()
    units = found["units"].to_dataset()
    print(f"accuracy {float(found['accuracy']):.4f}, mean selectivity {mean(units):.4f}")
    print(f"all units alike: {float(units['selectivity'].mean()):.3f}")
    for eps in EPS:
        print(f"eps {eps}: {mean(units, eps=eps):.4f}")
    blocks = [name for name in units["layer"].values if name.endswith("relu2")]
    of_blocks = units.isel(unit=np.isin(units["layer"].values, blocks))
    print(f"outputs of the blocks: {mean(of_blocks):.3f}")
    convolutions = analyze("*conv*")["units"].to_dataset()
    print(f"convolutions: {mean(convolutions):.3f}; {below(convolutions)}")
    normed = analyze("layer*.bn2")["units"].to_dataset()
    print(f"bn2: {below(normed)}")
    for negative in ("clip", "keep", "shift", "nan"):
        index = pk.class_selectivity(normed["class_mean"], negative=negative)  # type: ignore[arg-type]
        told = f"{mean(normed, negative=negative):.3f}, from {float(index.min()):.3f}"
        print(
            f"  {negative}: {told} to {float(index.max()):.3f}, {int(index.notnull().sum())} units"
        )
    for samples in SAMPLES:
        draws = range(1 if samples == SAMPLES[-1] else 3)
        means = [float(analyze(limit=samples, seed=seed)["selectivity_mean"]) for seed in draws]
        print(f"{samples} samples: {np.mean(means):.3f}")


def mean(units: xr.Dataset, **options: object) -> float:
    """The mean over layers of the mean over their units."""
    index = pk.class_selectivity(units["class_mean"], **options)  # type: ignore[arg-type]
    return float(index.groupby("layer").mean().mean())


def below(units: xr.Dataset) -> str:
    """The number of units with a negative class mean, as text."""
    return f"{int(units['negative_class_mean'].sum())} of {units.sizes['unit']} units below zero"


if __name__ == "__main__":
    main()
