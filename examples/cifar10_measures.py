"""Measure the networks of `cifar10_networks.py`: arrays that docs/reproduction/cifar10/tables.py reads.

    python examples/cifar10_measures.py RUNS MEASURED --data-root DIR --device cuda

Writes `MEASURED/RUN.a.npz` (predictions on clean, corrupted and attacked images) and `RUN.b.npz` (gradients,
ablation and dimensionality, see `cifar10_changes.py`) for each run, and skips existing files. All
networks are measured on the same random sample of test images, in float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10_changes import EPSILONS, changes
from torch import Tensor

import probekit as pk

TYPES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip


class Sample:
    """The whole test split, and a random sample of it on a device."""

    def __init__(self, data: Any, count: int, device: str) -> None:
        self.data, self.device = data, device
        order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
        self.index = order[:count].sort().values
        self.images = data.images[self.index].to(device).float() / 255
        self.labels = data.labels[self.index].to(device)

    def corrupted(self) -> dict[str, Tensor]:
        """The corrupted images of each type, (severity, image, ...)."""
        numbers = self.index.tolist()
        return {
            name: torch.stack(
                [pk.corrupt(self.images, name, s, index=numbers) for s in range(1, 6)]
            )
            for name in TYPES
        }


def right(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified as labeled."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in images.split(1000)]) == labels


def packed(flags: Tensor) -> Any:
    """Packs booleans into bits along the last axis."""
    return np.packbits(flags.cpu().numpy(), axis=-1)


def whole_split(model: Any, sample: Sample) -> dict[str, Any]:
    """Predictions for the test split, and class sums of each unit's values, squares and signs."""
    predicted, sums = [], 0
    with pk.Recorder(model) as recorder, torch.no_grad():
        for start in range(0, len(sample.data.labels), 1000):
            part = slice(start, start + 1000)
            images = sample.data.images[part].to(sample.device).float() / 255
            labels = torch.nn.functional.one_hot(sample.data.labels[part], 10).T.double()
            predicted.append(recorder(images).argmax(1))
            pooled = torch.cat(list(recorder.activations.values()), 1).double()
            parts = (pooled, pooled**2, (pooled > 0).double())
            sums = sums + torch.stack([labels.to(sample.device) @ one for one in parts])
        names, units = zip(*((layer.name, layer.units) for layer in recorder.layers), strict=True)
    return {
        "layer": np.array(names),
        "units": np.array(units),
        "clean_predicted": torch.cat(predicted).to(torch.uint8).cpu().numpy(),
        "class_moments": sums.float().cpu().numpy(),
    }


def attacked(model: Any, sample: Sample) -> dict[str, Any]:
    """Which images withstand FGSM and PGD with two losses (margin loss on every second image)."""
    found = {}
    for name, attack, step, epsilons in (
        ("fgsm", pk.FGSM(), 1, EPSILONS),
        ("pgd", pk.PGD(steps=20), 1, EPSILONS),
        ("pgd_margin", pk.PGD(steps=20, loss="margin"), 2, (EPSILONS[1], EPSILONS[3])),
    ):
        labels, index = sample.labels[::step], sample.index[::step]
        result = attack.run(
            model, sample.images[::step], labels, epsilons, index=index, check=False
        )
        found[f"{name}_right"] = packed(result.prediction == labels)
    return found


def margins(model: Any, sample: Sample) -> dict[str, Any]:
    """Logit margins, and the norms of their gradient, of the loss gradient and of the Jacobian."""
    x, own = sample.images.clone().requires_grad_(True), sample.labels[:, None]
    logits = model(x)
    others = logits.scatter(1, own, -torch.inf).amax(1)
    margin = logits.gather(1, own)[:, 0] - others
    (slope,) = torch.autograd.grad(margin.sum(), x, retain_graph=True)
    loss = torch.nn.functional.cross_entropy(logits, sample.labels, reduction="sum")
    (steep,) = torch.autograd.grad(loss, x)
    few = [(sample.images[::2], sample.labels[::2])]
    norm = pk.jacobian_norm(model, few, method="exact", progress=False)["jacobian_norm"]
    return {
        "margin": margin.detach().cpu().numpy(),
        "margin_gradient_l1": slope.flatten(1).abs().sum(1).cpu().numpy(),
        "loss_gradient_zeros": (steep == 0).flatten(1).float().mean(1).cpu().numpy(),
        "jacobian_norm": norm.values.astype(np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    asked.measured.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.allow_tf32 = False
    data = pk.load_data("cifar10", root=asked.data_root, split="test")
    sample = Sample(data, asked.images, asked.device)
    corrupted = sample.corrupted()
    for run in sorted(asked.runs.iterdir()):
        one, two = (asked.measured / f"{run.name}.{part}.npz" for part in "ab")
        model = pk.load_model(run)
        model.module.to(asked.device)
        if not one.exists():
            labels = sample.labels.repeat(5)
            kinds = torch.stack([right(model, x.flatten(0, 1), labels) for x in corrupted.values()])
            found = {"corrupted_right": packed(kinds.view(len(kinds), 5, -1))}
            found |= whole_split(model, sample) | attacked(model, sample) | margins(model, sample)
            np.savez_compressed(one, **found)
        if not two.exists():
            moments = np.load(one)["class_moments"]
            np.savez_compressed(two, **changes(model, sample, corrupted, moments))


if __name__ == "__main__":
    main()
