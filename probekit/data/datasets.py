"""Loads data by name or from a folder, fitted to a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from probekit.checks import non_negative_int
from probekit.data import readers
from probekit.data.decoding import DEFAULT_DECODER, ImageDecoder
from probekit.data.folders import FolderImages, split_folders, training_beside
from probekit.data.images import LabeledImages, PreparedImages, Size, TensorImages
from probekit.data.items import is_map_style
from probekit.data.labels import LABEL_KEYS
from probekit.data.readers import FASHION_MNIST_CLASSES, read_idx
from probekit.data.readers.arrays import ARRAY_SUFFIXES, array_file
from probekit.data.readers.tables import TABLE_SUFFIXES, is_table, read_table, table_images
from probekit.errors import DataError, OptionError, close_matches, optional
from probekit.runtime.settings import on_own_device

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_DIGITS_TRAIN = 1437


# Readers of data sets from a folder; `digits` and the bundled images need none.
_READERS: dict[str, Callable[..., TensorImages]] = {
    "cifar10": readers.cifar10,
    "cifar100": readers.cifar100,
    "fashion-mnist": readers.fashion_mnist,
    "mnist": readers.mnist,
    "tiny-imagenet": readers.tiny_imagenet,
}


def list_data() -> list[str]:
    """The names of data sets that `load_data` accepts.

    Example:
        >>> list_data()
        ['cifar10', 'cifar100', 'digits', 'fashion-mnist', 'mnist', 'tiny-imagenet']
    """
    return sorted([*_READERS, "digits"])


@on_own_device
def load_data(
    source: Any,
    model: Any = None,
    *,
    skip_bad: bool = False,
    root: str | Path | None = None,
    split: str | None = None,
    workers: int = 0,
    attributes: Iterable[str] | None = None,
) -> LabeledImages:
    """Loads labeled images, resized and cropped for a model.

    Args:
        source: A name (`fashion-mnist`, `digits`, `mnist`, `cifar10`, `cifar100`, `tiny-imagenet`),
            a folder with one folder of images per class, a table of image files and labels (pandas or
            polars, or a CSV, TSV or Parquet file), an `.npz` or HDF5 file of arrays, or a map-style data
            set of torchvision, timm or Hugging Face. `docs/data.md` lists all forms.
        model: An `ImageModel`, whose input size, crop and interpolation are used; None leaves arrays
            unchanged, and resizes image files and PIL images to 224 px.
        skip_bad: Skip images that cannot be read instead of raising an error at the first. Named data
            sets and array files are always read whole.
        root: The folder with the files of a named data set, or that the paths in a table are relative
            to. The test split of `fashion-mnist` and all of `digits` need none.
        split: For a named data set, `train` or `test`, test by default. `digits` also has `all`
            (1,797 images, of which the last 360 are `test`), its default unless the model was trained
            on `digits`. For a folder, its subfolder of that name; for a table, the rows with that value in
            the column `split`; for an array file, names such as `x_test`; for a mapping of data sets, its
            key. Required where there are splits.
        workers: Number of threads that decode `tiny-imagenet`; 0 decodes in the current thread. Other
            data is read when it is needed, with the `workers` of `analyze`.
        attributes: Label columns of a table, such as color and shape, instead of a single one.

    Returns:
        A map-style data set of (image in [0, 1], label), with `classes` and a `fingerprint`.

    Raises:
        DataError: The name or folder does not exist or has no images, a file is missing or damaged, or
            the data set is of an unsupported kind.
        OptionError: The split does not exist, the number of workers is negative, or an option is given
            for data that it does not apply to.

    Example:
        >>> data = load_data("digits")
        >>> len(data), data.classes[:3], data[0][0].shape
        (1797, ('0', '1', '2'), torch.Size([1, 8, 8]))
    """
    size = getattr(model, "input_size", None)
    decode = ImageDecoder.of(model) or DEFAULT_DECODER
    beside: list[Any] = []
    if isinstance(source, Mapping) and any(is_map_style(one) for one in source.values()):
        beside = list(source.values())
        source, split = _chosen(source, split), None
    columns = list(attributes or ())
    listed = isinstance(source, str | Path) and Path(source).suffix in TABLE_SUFFIXES
    if is_table(source) or (listed and os.path.isfile(source)):
        return _of_table(source, root, decode, split, skip_bad, columns)
    if columns and not listed:
        raise OptionError(
            f"attributes ({', '.join(columns)}) are label columns of a table of image files "
            f"({', '.join(TABLE_SUFFIXES)}), and {type(source).__name__} {str(source)[:60]!r} is none"
        )
    if is_map_style(source):
        given = {"split": split, "root": root, "workers": workers or None}
        own = isinstance(source, LabeledImages)
        if own:
            given["skip_bad"] = (skip_bad and not source.skip_bad) or None
        _refuse(given, type(source).__name__, "choose them where the data set is created")
        return source if own else PreparedImages(source, decode, skip_bad, beside)
    if not isinstance(source, str | Path):
        raise DataError(
            "load_data takes a name, a folder, a file, a table or a map-style data set, not "
            f"{type(source).__name__}; pass other iterables to analyze directly"
        )
    if str(source) in list_data():
        if split is None:
            everything = str(source) == "digits" and trained_on(model) != "digits"
            split = "all" if everything else "test"
        images: LabeledImages = _named(str(source), root, split, size, workers)
    elif os.path.isfile(source):
        if Path(source).suffix not in ARRAY_SUFFIXES:
            known = ", ".join((*TABLE_SUFFIXES, *ARRAY_SUFFIXES))
            raise DataError(
                f"{str(source)!r} is a file of an unknown kind: data are read from {known} files and "
                "folders"
            )
        _refuse({"root": root}, f"the file {str(source)!r}", "give the path of the file itself")
        images = array_file(Path(source), split, size)
    elif os.path.isdir(source):
        _refuse({"root": root}, f"the folder {str(source)!r}", "give the path of the folder itself")
        images = FolderImages(_split_folder(source, split), decode, skip_bad)
    else:
        raise DataError(
            f"{str(source)!r} is neither a data set nor a folder nor a file; "
            f"{close_matches(str(source), list_data(), what='data set')}"
        )
    images.split = split
    return images


def _of_table(
    source: Any,
    root: str | Path | None,
    decode: ImageDecoder,
    split: str | None,
    skip_bad: bool,
    attributes: Sequence[str],
) -> LabeledImages:
    """The images that a table lists, or the file of one."""
    name, here, training = type(source).__name__, Path(), None
    if not is_table(source):
        file = Path(source)
        name, here, source = str(file), file.parent, read_table(file, [*LABEL_KEYS, *attributes])
        training = training_beside(file)
    images = table_images(
        source, name, here if root is None else Path(root), decode,
        split=split, skip_bad=skip_bad, attributes=attributes, beside=training,
    )  # fmt: skip
    images.split = split
    return images


def _split_folder(source: str | Path, split: str | None) -> Path:
    folder = Path(source, split or "")
    if not os.path.isdir(folder):
        there = split_folders(Path(source))
        raise DataError(
            f"there is no folder {split!r} in {str(source)!r}"
            + (f"; it holds {', '.join(there)}" if there else "")
        )
    return folder


def _refuse(options: Mapping[str, Any], what: str, advice: str) -> None:
    """Raises `OptionError` if an option is given for data that it does not apply to."""
    for name, value in options.items():
        if value is not None:
            raise OptionError(f"{name}={value!r} does not apply to {what}; {advice}")


def is_loadable(data: Any) -> bool:
    """Whether data is given to `load_data` before use: a name, a path or a table of image files."""
    return isinstance(data, str | os.PathLike) or is_table(data)


def _chosen(splits: Mapping[str, Any], split: str | None) -> Any:
    """One of several data sets, such as of a `DatasetDict` of Hugging Face."""
    if split is None or split not in splits:
        raise DataError(
            f"the data holds the splits {', '.join(map(str, splits))}, not {split!r}; choose one with "
            "split="
        )
    return splits[split]


def trained_on(model: Any) -> str | None:
    """The name of the training data set, for a model of a training run."""
    recipe = (getattr(model, "provenance", None) or {}).get("recipe")
    data = recipe.get("data") if isinstance(recipe, Mapping) else None
    return None if data is None else str(data)


def _named(
    name: str, root: str | Path | None, split: str, size: Size, workers: int
) -> TensorImages:
    splits = ("train", "test", "all") if name == "digits" else ("train", "test")
    if split not in splits:
        raise OptionError(f"{name} has the splits {', '.join(splits)}, not {split!r}")
    non_negative_int("workers", workers)
    if name == "digits":
        return _digits(split, size)
    if name == "fashion-mnist" and root is None and split == "test":
        folder = resources.files("probekit.data") / "bundled"
        images = read_idx(folder / "t10k-images-idx3-ubyte.gz")[:, None]
        labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
        return TensorImages(images, labels, FASHION_MNIST_CLASSES, name, size)
    options = {"workers": workers} if name == "tiny-imagenet" else {}
    return _READERS[name](_folder_of(name, root), split, size=size, **options)


def _digits(split: str, size: Size) -> TensorImages:
    with optional("sklearn", "the data set digits"):
        from sklearn.datasets import load_digits

    pixels, labels = _parsed_digits(load_digits)
    part = {"all": slice(None), "train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None)}
    images, target = torch.tensor(pixels[part[split]]), torch.tensor(labels[part[split]])
    classes = [str(digit) for digit in range(10)]
    return TensorImages(images[:, None], target, classes, "digits", size)


@cache  # parsing takes a third of the time of a short training run
def _parsed_digits(load: Callable[[], Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    digits = load()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target


def _folder_of(name: str, root: str | Path | None) -> Path:
    if root is None and name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    if root is None:
        raise DataError(
            f"{name} is read from a folder: pass root=DIR (--data-root), the folder with its unpacked "
            "archive"
        )
    if not os.path.isdir(root):
        raise DataError(f"there is no folder {str(root)!r} to read {name} from")
    return Path(root)
