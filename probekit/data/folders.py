"""Images in one folder per class."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from probekit.data.decoding import DEFAULT_DECODER, ImageDecoder
from probekit.data.images import Fetched, LabeledImages
from probekit.errors import DataError, first_line, some_of, warn

_SUFFIXES = frozenset({
    ".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
# Readable only if the installed Pillow or a registered plugin supports them.
_OPTIONAL_SUFFIXES = frozenset((".avif", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".qoi"))
_SYSTEM_NAMES = frozenset({
    "__macosx", "__pycache__", "$recycle.bin", "@eadir", "desktop.ini", "lost+found", "thumbs.db",
    "system volume information",
})  # fmt: skip
_SPLITS = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "eval"])
_TRAINING = frozenset(["train", "training"])
_HASHED_BYTES = 2**24  # more than most photographs have
_MOST_THREADS = 8


class FileImages(LabeledImages):
    """Image files, read and fitted to a model on demand; `keys` name them in the fingerprint."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        classes: Sequence[str],
        name: str,
        keys: Sequence[bytes],
        decode: ImageDecoder,
        skip_bad: bool = False,
    ) -> None:
        self.paths, self.labels, self.classes = list(paths), labels, tuple(classes)
        self.name, self.decode, self.skip_bad = name, decode, skip_bad
        self._keys = keys

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed on first use
        """Hash of the file names, sizes and preprocessing, and of the content of 64 of the files.

        Unreadable files count as empty, so data with skipped images has a fingerprint too.
        """
        to = self.decode
        mode = "" if to.crop_mode == "center" else f"|{to.crop_mode}"
        digest = hashlib.sha256(f"{to.size}|{to.crop_pct}|{to.interpolation}{mode}".encode())
        for key, path in zip(self._keys, self.paths, strict=True):
            size = 0
            with suppress(OSError):
                size = path.stat().st_size
            digest.update(key + f"|{size}|".encode())
        for path in self.paths[:: max(1, len(self.paths) // 64)]:
            with suppress(OSError), path.open("rb") as file:
                digest.update(file.read(_HASHED_BYTES))
        return f"sha256:{digest.hexdigest()}"

    def content_of(self, numbers: Iterable[int]) -> str:
        digest = hashlib.sha256()
        for number in numbers:
            with suppress(OSError), self.paths[number].open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"

    def fetch(self, numbers: list[int]) -> Fetched:
        # Pillow releases the GIL while it decodes. Worker processes use no threads.
        alone = len(numbers) == 1 or get_worker_info() is not None
        count = 1 if alone else min(_MOST_THREADS, torch.get_num_threads() + 1)
        with ThreadPoolExecutor(count, "probekit-decode") as threads:
            read = list(map(self._read, numbers) if alone else threads.map(self._read, numbers))
        images = [image for image in read if image is not None]
        kept = [at for at, image in zip(numbers, read, strict=True) if image is not None]
        stacked = torch.stack(images) if images else torch.empty(0, *self.decode.size)
        index = torch.tensor(kept, dtype=torch.long)
        return stacked, self.labels[index], index

    def _read(self, number: int) -> Tensor | None:
        """The image; None if it cannot be read and is skipped."""
        try:
            return self.decode.read(self.paths[number])
        except Exception as error:  # damaged files may raise any exception
            if self.skip_bad:
                return None
            raise DataError(
                f"image {str(self.paths[number])!r} cannot be read ({first_line(error)}); repair or "
                "remove it, or skip what cannot be read with skip_bad=True (--skip-bad)"
            ) from None


class FolderImages(FileImages):
    """Images in one folder per class.

    The shorter side is resized to the input size divided by `crop_pct`, and the center is cropped, as
    timm and torchvision do for evaluation. Every folder is a class, even if it is empty. In a split, such
    as `val`, classes have the numbers that they have in `train` beside it. Hidden and
    system files and folders are ignored, links are followed, and a warning reports the number of files
    of unknown types.

    Warns:
        ProbekitWarning: There are files of unknown types, classes without images, or classes that the
            training split lacks.
    """

    def __init__(
        self,
        root: str | Path,
        decode: ImageDecoder = DEFAULT_DECODER,
        skip_bad: bool = False,
    ) -> None:
        root = Path(root)
        if not os.path.isdir(root):
            raise DataError(f"there is no folder {str(root)!r}")
        own = _folder_names(root)
        if splits := split_folders(root):
            raise DataError(
                f"{str(root)!r} holds the folders {', '.join(splits)}, which are splits of the data "
                f"and not classes; choose one, as in split={splits[-1]!r} (--split {splits[-1]})"
            )
        beside = training_beside(root)
        trained = [] if beside is None else _folder_names(beside)
        classes, unknown = numbered_after(trained, own, str(root))
        folders = [root / name for name in classes]
        above = frozenset(_identity(one) for one in (root.resolve(), *root.resolve().parents))
        files = [sorted(_files(folder, above)) if folder.name in own else [] for folder in folders]
        found = [[path for path in paths if _is_image(path)] for paths in files]
        if not any(found):
            raise DataError(
                f"no images in {str(root)!r}: expected one folder per class with images in it "
                f"({', '.join(sorted(_SUFFIXES))}), found {len(own)} folders"
            )
        paths = [path for group in found for path in group]
        super().__init__(
            paths,
            torch.tensor([label for label, group in enumerate(found) for _ in group]).long(),
            [os.fsencode(folder.name).decode("utf-8", "replace") for folder in folders],
            str(root),
            [os.fsencode(path.relative_to(root)) for path in paths],
            decode,
            skip_bad,
        )
        others = [path for paths in files for path in paths if not _is_image(path)]
        top = [Path(entry.path) for entry in _entries(root) if not _is_folder(entry)]
        others += filter(_is_image, top)
        self.notes = [*self._left_out(others, [len(paths) for paths in found]), *unknown]
        if shared := _shared_subfolders(root, own):
            self.notes.append(
                f"all class folders in {self.name!r} hold folders named {some_of(shared)}; if these are "
                f"the classes, give the folder above them, such as {str(root / own[-1])!r}"
            )
        for sentence in self.notes:
            warn(sentence)

    def _left_out(self, others: list[Path], counts: list[int]) -> Iterator[str]:
        """Messages about files and classes without images."""
        if others:
            kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
            listed = [f"{count} {kind}" for kind, count in kinds.most_common()]
            yield (
                f"{len(others)} files in {self.name!r} are left out: unsupported image types, files "
                f"that are not images, or images outside class folders ({some_of(listed)})"
            )
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            yield (
                f"{len(empty)} of {len(counts)} class folders in {self.name!r} hold no image and keep "
                f"their numbers: {some_of(empty)}"
            )


def split_folders(root: Path) -> list[str]:
    """The split folders (`train`, `val`, ...) of a data set; empty if it has no splits.

    A data set has splits if at least two of its folders have such names, or if its only folder has
    such a name and contains folders itself.
    """
    folders = _folder_names(root)
    splits = [name for name in folders if name.lower() in _SPLITS]
    if len(folders) == len(splits) == 1:
        return splits if _folder_names(root / splits[0]) else []
    return splits if len(splits) > 1 else []


def training_beside(split: Path) -> Path | None:
    """The training split beside another one: `train` beside `val`, `train.csv` beside `val.csv`."""
    split = Path.cwd() / split
    if split.stem.lower() not in _SPLITS - _TRAINING:
        return None
    entries = [one for one in _entries(split.parent) if _is_folder(one) == split.is_dir()]
    paths = [Path(one.path) for one in entries]
    beside = [one for one in paths if one.stem.lower() in _TRAINING and one.suffix == split.suffix]
    return beside[0] if len(beside) == 1 else None


def numbered_after(
    trained: Iterable[str], own: Iterable[str], name: str
) -> tuple[list[str], list[str]]:
    """The classes of a training split followed by those that only another split (`name`) has.

    Also returns a message if there is a training split and it lacks some of the classes.
    """
    known = list(trained)
    new = [one for one in own if one not in set(known)]
    notes = [
        f"{len(new)} classes in {name!r} are not in the training split beside it and are "
        f"numbered after its {len(known)} classes: {some_of(new)}"
    ]
    return known + new, notes if known and new else []


def _shared_subfolders(root: Path, classes: Sequence[str]) -> list[str]:
    """The names of folders that every class contains, if there are at least two."""
    inside = [set(_folder_names(root / name)) for name in classes]
    shared = sorted(set.intersection(*inside)) if inside else []
    return shared if len(shared) > 1 else []


def _folder_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The contents of a folder, sorted by name, without hidden and system files and folders."""
    try:
        with os.scandir(folder) as entries:
            found = [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_NAMES
            ]
    except OSError as error:
        raise DataError(f"the folder {str(folder)!r} cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _files(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """All files in a folder and its subfolders; links are followed, except to a folder above them."""
    here = _identity(folder)
    if here in above:
        return
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _files(Path(entry.path), above | {here})
        else:
            yield Path(entry.path)


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in _OPTIONAL_SUFFIXES:
        return suffix in Image.registered_extensions()
    return suffix in _SUFFIXES
