"""Measure what single units do, on the networks of `cifar10_networks.py`.

    python examples/cifar10_units.py ablated RUNS OUT --data-root DIR
    python examples/cifar10_units.py corrupted RUNS OUT --data-root DIR

`ablated` holds one unit at a time at its mean, in the last layer of each stage, and measures accuracy and
loss for the images of each class. `corrupted` correlates each unit's activations with those for corrupted
images, over images. Both write one file per network and skip existing files. All networks are measured on
the same random sample of test images, in float32. docs/reproduction/cifar10/selectivity.py makes
tables of them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import probekit as pk

ALPHAS = (-2.0, 0.0, 1.0)
STAGES = ("layer1", "layer2", "layer3")
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")  # one of each family
SEVERITY = 3
BATCH = 100


def by_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy and mean loss for the images of each class: (2, class)."""
    right = (logits.argmax(1) == labels).float()
    share = torch.nn.functional.one_hot(labels, 10).float()
    both = torch.stack([right, cross_entropy(logits, labels, reduction="none")])
    return both @ (share / share.sum(0))


def ablated(model: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy and loss of each class while one unit of a layer is held at its mean over images.

    What comes before the layer is computed once, so that this works for `CifarResNet` alone.
    """
    net, found = model.module, {}
    mean, std = (torch.tensor(one).view(1, -1, 1, 1) for one in (model.mean, model.std))

    def finish(maps: Tensor, rest: list[str]) -> Tensor:
        parts = maps.split(BATCH)
        for name in rest:
            parts = [getattr(net, name)(part) for part in parts]
        return torch.cat([net.fc(part.mean((2, 3))) for part in parts])

    with torch.no_grad():
        maps = net.relu(net.bn1(net.conv1((images - mean) / std)))
        for number, name in enumerate(STAGES):
            maps = torch.cat([getattr(net, name)(part) for part in maps.split(BATCH)])
            rest = list(STAGES[number + 1 :])
            rows = [by_class(finish(maps, rest), labels)]
            for unit in range(maps.shape[1]):
                held = maps.clone()
                held[:, unit] = maps[:, unit].mean()
                rows.append(by_class(finish(held, rest), labels))
            found[f"{name}.2.relu2"] = torch.stack(rows).numpy()
    return found


def pooled(model: Any, images: Tensor) -> Tensor:
    """Pooled activations of all units: (image, unit)."""
    rows = []
    with pk.Recorder(model) as recorder, torch.no_grad():
        for part in images.split(BATCH):
            recorder(part)
            rows.append(torch.cat(list(recorder.activations.values()), 1))
    return torch.cat(rows)


def corrupted(model: Any, images: Tensor, changed: list[Tensor]) -> dict[str, Any]:
    """Correlation over images of each unit's activations, clean and corrupted; NaN if constant."""
    clean = pooled(model, images)
    found = []
    for one in changed:
        x, y = (table - table.mean(0) for table in (clean, pooled(model, one)))
        found.append(((x * y).mean(0) / (x.square().mean(0) * y.square().mean(0)).sqrt()).numpy())
    return {"stability": np.stack(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("ablated", "corrupted"))
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=4)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    test = pk.load_data("cifar10", root=asked.data_root, split="test")
    index = np.random.default_rng(0).permutation(len(test.labels))[: asked.images]
    images, labels = test.images[index].float() / 255, test.labels[index]
    changed = []
    if asked.part == "corrupted":
        numbers = index.tolist()
        changed = [pk.corrupt(images, name, SEVERITY, index=numbers) for name in CORRUPTIONS]
    for name in (f"a{alpha:g}_s{seed}" for seed in range(asked.seeds) for alpha in ALPHAS):
        file = asked.out / f"{name}.{asked.part}.npz"
        if file.exists():
            continue
        model = pk.load_model(asked.runs / name)
        found = corrupted(model, images, changed) if changed else ablated(model, images, labels)
        np.savez(f"{file}.part.npz", **found)
        os.replace(f"{file}.part.npz", file)


if __name__ == "__main__":
    main()
