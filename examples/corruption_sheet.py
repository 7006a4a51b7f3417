"""Draw all corruption types at all severities, one row for each type, to a PNG.

    python examples/corruption_sheet.py sheet.png --side 224
    python examples/corruption_sheet.py sheet.png --side 64 --image photo.png
    python examples/corruption_sheet.py sheet.png --side 32 --image folder-of-classes/

Without `--image`, it uses a photograph included in scikit-learn. It also requires matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probekit.errors import OptionError
from probekit.perturbations.corruptions.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, Corruption

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def photograph(path: Path | None, side: int) -> Tensor:
    """The central square of a photograph, float (1, 3, side, side) in [0, 1]."""
    if path is None:
        from sklearn.datasets import load_sample_image

        picture = Image.fromarray(load_sample_image("china.jpg"))
    else:
        if path.is_dir():
            path = next(p for p in sorted(path.rglob("*")) if p.suffix.lower() in ENDINGS)
        picture = Image.open(path).convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    square = picture.crop((left, top, left + short, top + short))
    small = np.array(square.resize((side, side), Image.Resampling.LANCZOS))
    return torch.from_numpy(small).permute(2, 0, 1).unsqueeze(0) / 255


def sheet(image: Tensor) -> plt.Figure:
    """One row per type: the clean image, then severities 1 to 5."""
    names = CORRUPTIONS + EXTRA_CORRUPTIONS
    figure, axes = plt.subplots(
        len(names), 6, figsize=(9.6, 1.55 * len(names)), squeeze=False, layout="constrained"
    )
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(name.replace("_", " "), fontsize=9)
        show(row[0], image)
        for severity, axis in enumerate(row[1:], start=1):
            try:
                show(axis, Corruption(name, severity)(image))
            except OptionError as error:
                axis.text(0.5, 0.5, "not installed", ha="center", va="center", fontsize=8)
                print(error)
    for axis, title in zip(axes[0], ("clean", *range(1, 6)), strict=True):
        axis.set_title(title if title == "clean" else f"severity {title}", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def show(axis: plt.Axes, image: Tensor) -> None:
    """Shows one image without interpolation."""
    axis.imshow(image[0].permute(1, 2, 0).numpy(), vmin=0, vmax=1, interpolation="nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--image", type=Path, help="a picture, or a folder of classes")
    options = parser.parse_args()
    image = photograph(options.image, options.side)
    figure = sheet(image)
    table = Corruption("fog", 1).table_for(image)
    figure.suptitle(f"{options.side} px, constants for {table} px", fontsize=10)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
