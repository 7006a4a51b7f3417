"""Measure what low selectivity means, on the networks of `cifar10_networks.py`.

    python examples/cifar10_selectivity.py PART RUNS OUT --data-root DIR

PART is `record` (pooled activations of the sweep, needed by the other parts), `robust` (the same for robust
and untrained networks), `bases` (the search over rotations), `elements` (the index of each map element) or
`constants` (constants that do not change the network's function). Each part writes one file per network and
skips existing files. Networks are processed seed by seed, so an interrupted part is a balanced design. All
networks are measured on the same random sample of test images, in float32.
docs/reproduction/cifar10/selectivity.py makes tables of the files.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import probekit as pk
from probekit.models.architectures import ARCHITECTURES

INNER = (-2.0, -1.0, -0.4, 0.0, 0.4, 0.7, 1.0)
CONTRASTED = (-2.0, 0.0, 1.0)
SEARCHED = "layer2.2.relu2"
PARTS = ("record", "robust", "bases", "elements", "constants")
BATCH = 100


def design(part: str) -> list[str]:
    """The networks of a part, seed by seed; `random` networks are untrained."""
    if part == "robust":
        names = [f"{name}_s{seed}" for seed in range(5) for name in ("augmix", "pgd")]
        return [*names, "a0_s4", *(f"random_s{seed}" for seed in range(4))]
    if part == "constants":
        return [f"a0_s{seed}" for seed in range(4)]
    alphas = INNER if part == "record" else CONTRASTED
    return [f"a{alpha:g}_s{seed}" for seed in range(4) for alpha in alphas]


def network(runs: Path, name: str) -> Any:
    """A trained network, or an untrained one with the normalization of the trained ones."""
    if not name.startswith("random"):
        return pk.load_model(runs / name)
    seed = int(name.rpartition("_s")[2])
    model = pk.load_model(runs / f"a0_s{seed}")
    torch.manual_seed(seed)
    model.module.load_state_dict(ARCHITECTURES["resnet20"](classes=10, channels=3).state_dict())
    return model


def record(model: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Pooled activations of all units, and which images are classified as labeled."""
    pooled, right = [], []
    with pk.Recorder(model) as recorder, torch.no_grad():
        for part in images.split(BATCH):
            right.append(recorder(part).argmax(1))
            pooled.append(torch.cat(list(recorder.activations.values()), 1))
        layers = recorder.layers
    return {
        "layer": np.array([layer.name for layer in layers]),
        "units": np.array([layer.units for layer in layers]),
        "right": (torch.cat(right) == labels).numpy(),
        "pooled": torch.cat(pooled).numpy(),
    }


def elements(model: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The mean index over each unit's map elements, for true and for permuted labels."""
    permuted = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    member = [torch.nn.functional.one_hot(one, 10).T.float() for one in (labels, permuted)]
    shares = torch.cat([one / one.sum(1, keepdim=True) for one in member])
    sums: dict[str, Any] = {}
    with pk.Recorder(model, spatial="none") as recorder, torch.no_grad():
        for part, share in zip(images.split(BATCH), shares.split(BATCH, 1), strict=True):
            recorder(part)
            for name, maps in recorder.activations.items():
                sums[name] = sums.get(name, 0) + share @ maps.flatten(1)
        units = [layer.units for layer in recorder.layers]
    found = []
    for means in sums.values():
        tables = [xr.DataArray(one.T, dims=("unit", "class")) for one in means.split(10)]
        found.append(np.stack([pk.class_selectivity(one).values for one in tables]))
    by_unit = [one.reshape(2, u, -1).mean(2) for one, u in zip(found, units, strict=True)]
    return {"index": np.concatenate(by_unit, 1)}


def bases(recorded: Any, labels: Tensor) -> dict[str, Any]:
    """The highest selectivity that a search finds in rotations of the middle layer."""
    own = np.repeat(recorded["layer"], recorded["units"]) == SEARCHED
    found = pk.linear_basis_selectivity(recorded["pooled"][:, own], labels.numpy(), starts=2)
    return {str(key): value.item() for key, value in found.items()}


def constants(model: Any, recorded: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Predictions and the index after adding twice its mean to each unit as a constant."""
    ends = np.cumsum(recorded["units"])[:-1]
    means = np.split(2 * recorded["pooled"].mean(0), ends)
    given = dict(zip(recorded["layer"].tolist(), means, strict=True))
    shifted = pk.add_constants(model, given, images[:2])
    with torch.no_grad():
        before, after = model(images), shifted(images)
    names = [f"{name}.{kind}" for kind in ("original", "shifted") for name in given]
    result = pk.analyze(shifted, (images, labels), layers=names, progress=False)
    index = result["layers"]["selectivity_mean"].sel(layer=names).values.reshape(2, -1).mean(1)
    changed = (before.argmax(1) != after.argmax(1)).sum().item()
    largest = (before - after).abs().max().item()
    return {"index": index, "predictions_changed": changed, "largest_logit_change": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    parser.add_argument("--images", type=int, default=1000, help="half of them for elements")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    test = pk.load_data("cifar10", root=asked.data_root, split="test")
    order, few = np.random.default_rng(0).permutation(len(test.labels)), slice(asked.images // 2)
    index = order[: asked.images]
    images, labels = test.images[index].float() / 255, test.labels[index]
    for name in design(asked.part):
        file = asked.out / f"{name}.{'record' if asked.part == 'robust' else asked.part}.npz"
        if file.exists():
            continue
        model = network(asked.runs, name)
        if asked.part in ("record", "robust"):
            found = record(model, images, labels)
        elif asked.part == "bases":
            found = bases(np.load(asked.out / f"{name}.record.npz"), labels)
        elif asked.part == "elements":
            found = elements(model, images[few], labels[few])
        else:
            recorded = np.load(asked.out / f"{name}.record.npz")
            found = constants(model, recorded, images[few], labels[few])
        np.savez(f"{file}.part.npz", **found)
        os.replace(f"{file}.part.npz", file)


if __name__ == "__main__":
    main()
