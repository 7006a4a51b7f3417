"""Train a small ConvNeXt on CIFAR-10, for `published_units.py`. One thread needs about an hour.

    python examples/small_convnext.py OUT --data-root DIR

DIR contains `cifar-10-batches-py`. The weights are stored in OUT/small_convnext.safetensors. An interrupted
run resumes after its last epoch.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

import probekit as pk

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPOCHS, BATCH, PEAK = 16, 128, 3e-3


def small_convnext() -> ConvNeXt:
    """A ConvNeXt for images of 32 pixels: patches of 2 pixels, eight blocks, 0.8 million weights."""
    return ConvNeXt(num_classes=10, patch_size=2, depths=(1, 2, 4, 1), dims=(24, 48, 96, 192))


def augmented(images: Tensor) -> Tensor:
    """Each image mirrored at random and shifted by up to 4 pixels."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    windows = pad(images, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
    down, right = torch.randint(0, 9, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def normalized(images: Tensor) -> Tensor:
    """uint8 images as the network reads them."""
    mean, std = (torch.tensor(one).view(1, -1, 1, 1) for one in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def accuracy(network: ConvNeXt, images: Tensor, labels: Tensor) -> float:
    """The fraction of images that the network classifies correctly."""
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(normalized(part)).argmax(1) for part in images.split(500)])
    return (found == labels).double().mean().item()


def train(out: Path, images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> ConvNeXt:
    """Trains the network with AdamW and one cycle of the learning rate, or resumes its training."""
    torch.manual_seed(0)
    network = small_convnext()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, epochs * steps)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    first, file = 0, out / "state.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        first = saved.pop("epoch")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    for epoch in range(first, epochs):
        torch.manual_seed(1000 + epoch)
        network.train()
        for index in torch.randperm(len(labels))[: steps * BATCH].split(BATCH):
            logits = network(normalized(augmented(images[index])))
            optimizer.zero_grad()
            cross_entropy(logits, labels[index]).backward()
            optimizer.step()
            schedule.step()
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"epoch": epoch + 1, **states}, f"{file}.part")
        os.replace(f"{file}.part", file)
        print(f"epoch {epoch + 1} of {epochs}", flush=True)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    images = pk.load_data("cifar10", root=asked.data_root, split="train")
    network = train(asked.out, images.images, images.labels)
    test = pk.load_data("cifar10", root=asked.data_root, split="test")
    print(f"accuracy {accuracy(network, test.images, test.labels):.4f}")
    save_file(network.state_dict(), asked.out / "small_convnext.safetensors")


if __name__ == "__main__":
    main()
