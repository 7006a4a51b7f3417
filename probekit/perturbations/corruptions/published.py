"""Readers for local copies of the published corrupted data sets.

CIFAR-10-C and CIFAR-100-C have one array file per type, `TYPE.npy`, which holds the test set five
times, ordered by severity, and `labels.npy`. The files are memory-mapped and never read as a whole.
Tiny ImageNet-C and ImageNet-C are folders `TYPE/SEVERITY/CLASS/IMAGE`; in ImageNet-C the types may be
grouped into folders (`blur`, `digital`, `noise`, `weather`, `extra`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from probekit.checks import integer
from probekit.data.decoding import DEFAULT_DECODER, resize
from probekit.data.folders import FileImages
from probekit.data.images import LabeledImages, Size
from probekit.data.readers.arrays import ArrayImages
from probekit.errors import DataError, OptionError, close_matches, foreign_file
from probekit.perturbations.corruptions.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES

_ALL = CORRUPTIONS + EXTRA_CORRUPTIONS
_IMAGE_ENDINGS = {".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp"}
_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedCorruptions:
    """A published corrupted data set on disk, in the layout `npy` or `folders`.

    The standard corruptions come first; `classes` is None if their names are unknown. `numbers` has the label
    of each class, None for their order.
    """

    root: Path
    layout: str
    corruptions: tuple[str, ...]
    classes: tuple[str, ...] | None
    severities: tuple[int, ...] = SEVERITIES
    numbers: tuple[int, ...] | None = None
    _places: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    def dataset(self, corruption: str, severity: int, size: Size = None) -> LabeledImages:
        """The images of one type and severity: (float (channels, height, width) in [0, 1], label)."""
        if corruption not in self.corruptions:
            raise OptionError(
                f"{self.root} has no corruption {corruption!r}; "
                f"{close_matches(str(corruption), self.corruptions, what='corruption')}"
            )
        severity = integer("severity", severity, least=SEVERITIES[0], most=SEVERITIES[-1])
        place = self._places[corruption]
        name = f"{self.root} {corruption} {severity}"
        images: LabeledImages
        if self.layout == "folders":
            images = _FolderImages(place / str(severity), self.classes or (), name, size)
        else:
            labels = np.array(_severity_of(self.root / "labels.npy", severity))
            images = ArrayImages(partial(_severity_of, place, severity), labels, name, size)
            images.classes = self.classes or ()
        if self.numbers is not None:
            images.labels, images.classes = torch.tensor(self.numbers)[images.labels], ()
        return images


def load_published(
    root: str | Path, *, corruptions: Iterable[str] | None = CORRUPTIONS
) -> PublishedCorruptions:
    """Open CIFAR-10-C, CIFAR-100-C, Tiny ImageNet-C or ImageNet-C, detected by the layout.

    Args:
        root: Folder of the data set.
        corruptions: The required types, by default the 15 standard ones; None accepts any types.

    Raises:
        DataError: There is no such data set, or it is incomplete; the message names what is missing.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:  # as Tiny ImageNet-C is stored
        ...     for severity in range(1, 6):
        ...         inside = Path(folder, "fog", str(severity), "n02124075")
        ...         inside.mkdir(parents=True)
        ...         Image.new("RGB", (64, 64)).save(inside / "test_1.JPEG")
        ...     published = load_published(folder, corruptions=["fog"])
        ...     image, label = published.dataset("fog", severity=3)[0]
        >>> published.classes, tuple(image.shape), int(label)
        (('n02124075',), (3, 64, 64), 0)
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise DataError(f"there is no folder {root}")
    arrays = {name: root / f"{name}.npy" for name in _ALL if (root / f"{name}.npy").is_file()}
    folders = {} if arrays else _type_folders(root)
    places = arrays or folders
    if not places:
        raise DataError(
            f"{root} holds no corrupted images; known layouts are TYPE.npy with labels.npy "
            "(CIFAR-10-C, CIFAR-100-C) and TYPE/SEVERITY/CLASS/IMAGE (Tiny ImageNet-C, ImageNet-C)"
        )
    missing = [name for name in corruptions or () if name not in places]
    if missing:
        raise DataError(
            f"{root} is not complete: {', '.join(missing)} missing; download the rest, or name "
            f"the types wanted (there: {', '.join(places)})"
        )
    classes = _check_arrays(root, arrays) if arrays else _check_folders(folders)
    layout = "npy" if arrays else "folders"
    return PublishedCorruptions(root, layout, tuple(places), classes, _places=places)


def _type_folders(root: Path) -> dict[str, Path]:
    """The folder of each type, directly under the root or in a group."""
    groups = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    places = {name: [group / name for group in groups if (group / name).is_dir()] for name in _ALL}
    return {name: found[0] for name, found in places.items() if found}


def _check_arrays(root: Path, arrays: dict[str, Path]) -> tuple[str, ...] | None:
    """Checks that every array has one image per label; returns the classes if known."""
    labels_path = root / "labels.npy"
    if not labels_path.is_file():
        raise DataError(f"{root} is not complete: labels.npy is missing")
    labels = _opened(labels_path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % len(SEVERITIES):
        raise DataError(
            f"{labels_path} has shape {labels.shape} and type {labels.dtype}; labels are "
            "integers, one for each image of the five severities"
        )
    for path in arrays.values():
        images = _opened(path)
        if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
            raise DataError(
                f"{path} has shape {images.shape} and type {images.dtype}; published arrays are "
                "uint8 (images, height, width, channels)"
            )
        if len(images) != len(labels):
            raise DataError(
                f"{path} is not complete: it holds {len(images)} images, but labels.npy has "
                f"{len(labels)} labels"
            )
    return _CIFAR10 if len(labels) and int(labels.max()) < len(_CIFAR10) else None


def _check_folders(folders: dict[str, Path]) -> tuple[str, ...]:
    """Checks that every type has five severities with the same classes; returns the classes."""
    classes: tuple[str, ...] = ()
    for folder in folders.values():
        missing = [str(s) for s in SEVERITIES if not (folder / str(s)).is_dir()]
        if missing:
            raise DataError(f"{folder} is not complete: severity {', '.join(missing)} missing")
        for severity in SEVERITIES:
            here = folder / str(severity)
            found = tuple(sorted(path.name for path in here.iterdir() if path.is_dir()))
            classes = classes or found
            if found != classes or not found:
                differing = ", ".join(sorted(set(classes) ^ set(found))[:5])
                raise DataError(
                    f"{here} is not complete: it holds {len(found)} classes where the folders "
                    f"before it hold {len(classes)}; they differ in {differing}"
                )
    return classes


def _opened(path: Path) -> NDArray[Any]:
    with foreign_file(f"{path} cannot be read as an array file", DataError):
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    return array


def _severity_of(path: Path, severity: int) -> NDArray[Any]:
    """The part of an array file for a severity; the first fifth for severity 1."""
    array = _opened(path)
    count = len(array) // len(SEVERITIES)
    return array[(severity - 1) * count : severity * count]


class _FolderImages(FileImages):
    """One severity of a folder layout, in its own size or resized as tensors, without a crop."""

    def __init__(self, folder: Path, classes: tuple[str, ...], name: str, size: Size) -> None:
        files = []
        for of_class in classes:
            inside = sorted((folder / of_class).iterdir())
            files.append([path for path in inside if path.suffix.lower() in _IMAGE_ENDINGS])
            if not files[-1]:
                raise DataError(f"{folder / of_class} is not complete: it holds no images")
        labels = torch.tensor([label for label, group in enumerate(files) for _ in group])
        paths = [path for group in files for path in group]
        keys = [os.fsencode(path.relative_to(folder)) for path in paths]
        super().__init__(paths, labels, classes, name, keys, DEFAULT_DECODER)
        self._size = size

    def _read(self, number: int) -> Tensor:
        path = self.paths[number]
        with (
            foreign_file(f"{path} cannot be read as an image", DataError),
            Image.open(path) as image,
        ):
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
        return resize(pixels.permute(2, 0, 1)[None].float() / 255, self._size)[0]
