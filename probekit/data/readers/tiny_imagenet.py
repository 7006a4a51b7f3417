"""Tiny ImageNet from its official folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probekit.data.images import Size, TensorImages
from probekit.data.readers.files import needed, text_of, words_of
from probekit.errors import DataError, foreign_file

_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def tiny_imagenet(
    root: Path,
    split: str,
    *,
    size: Size = None,
    workers: int = 0,
    classes: int = 200,
    per_class: int = 500,
    test: int = 10_000,
) -> TensorImages:
    """Reads Tiny ImageNet from its official folder, with the official validation images as test split.

    `root` is the folder with `wnids.txt`, or the parent of `tiny-imagenet-200`. Images are decoded in
    `workers` threads; 0 decodes in the current thread. The other arguments are expected numbers.

    Source:
        Leavitt & Morcos 2020 (arXiv 2003.01262) test on the official validation set.
    """
    folder = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    names = sorted(words_of(needed("tiny-imagenet", folder / "wnids.txt", _TINY_URL)))
    if len(names) != classes:
        raise DataError(f"{str(folder / 'wnids.txt')!r} names {len(names)} classes, not {classes}")
    if split == "train":
        files, labels = _tiny_training(folder, names, per_class)
    else:
        files, labels = _tiny_test(folder, names, test)
    images = _decode(files, workers)
    shown = _tiny_class_names(folder, names)
    return TensorImages(images, torch.tensor(labels), shown, "tiny-imagenet", size)


def _tiny_training(
    folder: Path, names: Sequence[str], per_class: int
) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for label, name in enumerate(names):
        images = folder / "train" / name / "images"
        found = sorted(images.glob("*.JPEG")) if images.is_dir() else []
        if len(found) < per_class:
            have = {file.name for file in found}
            first = next(n for n in range(per_class) if f"{name}_{n}.JPEG" not in have)
            raise DataError(
                f"tiny-imagenet is incomplete: {str(images)!r} holds {len(found)} of {per_class} "
                f"images, {name}_{first}.JPEG is missing; unpack the whole archive of {_TINY_URL}"
            )
        files += found
        labels += [label] * len(found)
    return files, labels


def _tiny_test(folder: Path, names: Sequence[str], count: int) -> tuple[list[Path], list[int]]:
    table = needed("tiny-imagenet", folder / "val" / "val_annotations.txt", _TINY_URL)
    rows = [line.split("\t") for line in text_of(table).splitlines() if line.strip()]
    if len(rows) != count or any(len(row) < 2 for row in rows):
        raise DataError(f"{str(table)!r} has {len(rows)} lines of annotation, not {count}")
    number = {name: label for label, name in enumerate(names)}
    if unknown := [row[1] for row in rows if row[1] not in number]:
        raise DataError(f"{str(table)!r} names the class {unknown[0]!r}, which wnids.txt does not")
    files = [folder / "val" / "images" / row[0] for row in rows]
    for file in files:
        needed("tiny-imagenet", file, _TINY_URL)
    return files, [number[row[1]] for row in rows]


def _tiny_class_names(folder: Path, names: Sequence[str]) -> list[str]:
    """The first English word of each class, or its WordNet id if the word is not unique."""
    table = folder / "words.txt"
    lines = text_of(table).splitlines() if table.is_file() else []
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    shown = [words.get(name, name).split(",")[0].strip() for name in names]
    return [
        word if shown.count(word) == 1 else f"{word} ({name})"
        for word, name in zip(shown, names, strict=True)
    ]


def _decode(files: Sequence[Path], workers: int) -> Tensor:
    images = torch.empty(len(files), 3, 64, 64, dtype=torch.uint8)

    def read(number: int) -> None:
        file = files[number]
        with (
            foreign_file(f"image {str(file)!r} cannot be read", DataError),
            Image.open(file) as image,
        ):
            pixels = np.array(image.convert("RGB"))
        if pixels.shape != (64, 64, 3):
            raise DataError(f"image {str(file)!r} is {pixels.shape[:2]} and not 64 x 64 pixels")
        images[number] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    with ThreadPoolExecutor(workers or 1) as pool:
        list((pool.map if workers else map)(read, range(len(files))))
    return images
