"""Train the ResNet20 that ships with probekit, on the 60,000 Fashion-MNIST training images.

    python examples/train_bundled_model.py /usr/share/datasets/fashion-mnist OUT

The folder is the one of Debian's package `dataset-fashion-mnist` (gzipped IDX files). The test split is
used once, after the last epoch, for the accuracy on the card; no epoch is chosen by it. Writes
`OUT/resnet20-fashion-mnist.safetensors` and `OUT/resnet20-fashion-mnist.json`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from probekit.models.architectures import cifar_resnet

NAME = "resnet20-fashion-mnist"
MEAN, STD = 0.2860, 0.3530
CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def read_idx(path: Path) -> torch.Tensor:
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.from_numpy(
        np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()
    )


def split(root: Path, prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = read_idx(root / f"{prefix}-images-idx3-ubyte.gz")[:, None].float().div(255)
    return images, read_idx(root / f"{prefix}-labels-idx1-ubyte.gz").long()


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random horizontal flips and shifts of up to two pixels."""
    n, _, height, width = images.shape
    flip = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flip, images.flip(3), images)
    padded = functional.pad(images, (2, 2, 2, 2))
    shifts = torch.randint(0, 5, (2, n, 1, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)[None, :, None]
    columns = shifts[1] + torch.arange(width)[None, None, :]
    return padded[torch.arange(n)[:, None, None], 0, rows, columns][:, None]


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        hits = sum(
            int((model((x - MEAN) / STD).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return hits / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    images, labels = split(arguments.data, "train")
    model = cifar_resnet(20, classes=10, channels=1).to(memory_format=torch.channels_last)
    batch, peak = 128, 0.2
    optimizer = torch.optim.SGD(
        model.parameters(), peak, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = arguments.epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=0.2)
    for epoch in range(arguments.epochs):
        model.train()
        start, total = time.time(), 0.0
        for index in torch.randperm(len(labels), generator=generator).split(batch)[
            : len(labels) // batch
        ]:
            x = ((augment(images[index], generator) - MEAN) / STD).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}: loss {total / (len(labels) // batch):.4f}, {time.time() - start:.0f} s",
            flush=True,
        )

    arguments.out.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    weights = arguments.out / f"{NAME}.safetensors"
    save_file(state, weights)
    card = {
        "name": NAME,
        "architecture": {"name": "resnet20", "classes": 10, "channels": 1},
        "mean": [MEAN], "std": [STD], "input_size": [1, 28, 28], "classes": CLASSES,
        "recipe": {
            "data": "Fashion-MNIST, all 60,000 training images",
            "epochs": arguments.epochs, "batch_size": batch,
            "optimizer": "SGD, Nesterov momentum 0.9, weight decay 5e-4",
            "schedule": f"one cycle, peak {peak}",
            "augmentation": "horizontal flip, shift of up to 2 px", "precision": "bfloat16 autocast",
            "alpha": 0.0, "script": "examples/train_bundled_model.py",
        },
        "seed": arguments.seed,
        "test_accuracy": accuracy(model, *split(arguments.data, "t10k")),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }  # fmt: skip
    (arguments.out / f"{NAME}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"test accuracy {card['test_accuracy']:.4f}")


if __name__ == "__main__":
    main()
