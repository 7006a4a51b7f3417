"""The images of a run: the held-out images, and the minibatches of each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from probekit.data.batches import Batches
from probekit.data.datasets import load_data
from probekit.data.images import LabeledImages, TensorImages
from probekit.errors import DataError, OptionError
from probekit.models.image_model import ImageModel
from probekit.runtime.randomness import RandomStreams, shuffled
from probekit.training.run.recipes import Recipe

_WATCHED = 2000


def stream_name(seed: int, purpose: str, *numbers: int) -> str:
    return f"{purpose}, seed {seed}, {numbers}"


@dataclass(frozen=True)
class RunData:
    """The images of a run: those of the training, the held-out images (may be empty), and the test split.

    `watched` are evaluated after each epoch: the validation images, or some of the training images.
    `fingerprint` holds hashes of both splits, and then of the content of their files.
    """

    train: TensorImages
    validation: TensorImages
    test: TensorImages
    watched: TensorImages
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def load_run_data(recipe: Recipe, seed: int, root: str | Path | None, workers: int) -> RunData:
    """Loads the data of a recipe and draws the held-out images."""
    fit = ImageModel(torch.nn.Identity(), recipe.mean, recipe.std, recipe.input_size)
    loaded = [
        load_data(recipe.data, fit, root=root, split=split, workers=workers)
        for split in ("train", "test")
    ]
    train, test = (_in_memory(data, recipe, workers) for data in loaded)
    hashes = [train.fingerprint, test.fingerprint]
    if (content := [data.content_of(range(len(data))) for data in loaded]) != hashes:
        hashes += content
    if train.classes != test.classes:
        raise DataError(f"the train and test splits of {recipe.data} have different classes")
    if len(train.classes) < 2:
        raise DataError(
            f"training needs the names of two or more classes, and {recipe.data} names "
            f"{len(train.classes)}; give a folder per class, or labels that are text"
        )
    used, held = hold_out(train.labels, recipe, seed)
    watched = held if len(held) else used[:_WATCHED]
    labels = train.labels[watched]
    if int(labels.min()) == int(labels.max()):
        raise OptionError(
            f"the {len(watched)} images that are evaluated after each epoch are of one class, which have no "
            "selectivity; hold out more images (validation), or none (0)"
        )
    return RunData(
        train=_some(train, used, "train"),
        validation=_some(train, held, "validation"),
        test=test,
        watched=_some(train, watched, "watched"),
        fingerprint=" ".join(hashes),
    )


def hold_out(labels: Tensor, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Draws the indices of the training and of the validation images of a run, in random order."""
    order = shuffled(stream_name(seed, "split"), len(labels))
    if recipe.validation + 2 > len(labels):
        raise OptionError(
            f"validation={recipe.validation} leaves nothing to train on: {recipe.data} has "
            f"{len(labels)} training images"
        )
    if recipe.stratified and recipe.validation:
        order = _stratified(labels, order, recipe)
    held, used = order[: recipe.validation], order[recipe.validation :]
    return used[: recipe.limit], held


def _stratified(labels: Tensor, order: Tensor, recipe: Recipe) -> Tensor:
    """The same order with the validation images first, with equal numbers per class."""
    classes = int(labels.max()) + 1
    each, rest = divmod(recipe.validation, classes)
    if rest:
        raise OptionError(
            f"validation={recipe.validation} is not a multiple of the {classes} classes, which "
            "stratified=True needs"
        )
    ranked = labels[order]
    first = torch.zeros_like(ranked, dtype=torch.bool)
    for label in range(classes):
        places = (ranked == label).nonzero()[:each, 0]
        if len(places) < each:
            raise OptionError(
                f"validation={recipe.validation} needs {each} images of class {label}, which has "
                f"{len(places)}"
            )
        first[places] = True
    return torch.cat([order[first], order[~first]])


def _in_memory(data: LabeledImages, recipe: Recipe, workers: int) -> TensorImages:
    if not isinstance(data, TensorImages):
        read = list(Batches(data, batch_size=256, workers=workers))
        images = torch.cat([(batch.images * 255).round().to(torch.uint8) for batch in read])
        labels = torch.cat([batch.labels for batch in read])
        data = TensorImages(images, labels, data.classes, data.name)
    if tuple(data.images.shape[1:]) != recipe.input_size:
        raise DataError(
            f"recipe {recipe.name} is for images of {recipe.input_size} and {recipe.data} has "
            f"{tuple(data.images.shape[1:])}; set input_size, mean and std"
        )
    return data


def _some(data: TensorImages, index: Tensor, part: str) -> TensorImages:
    return TensorImages(data.images[index], data.labels[index], data.classes, f"{data.name} {part}")


class Minibatches:
    """The minibatches of every epoch, normalized and augmented on the device.

    The images of a step depend only on the seed, the epoch and the step. With several processes, each
    step is drawn once for all, and each process takes its share.
    """

    def __init__(
        self,
        data: TensorImages,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if recipe.batch_size % world:
            raise OptionError(
                f"batch_size={recipe.batch_size} must be a multiple of the {world} processes"
            )
        self.batch_size = min(recipe.batch_size, len(data) // world * world)
        self.steps = len(data) // self.batch_size
        share = self.batch_size // world
        self._own = slice(rank * share, (rank + 1) * share)
        self._seed = seed
        self._device = device
        self._augmentation = recipe.augmentation
        self._mixture = recipe.mixture
        self._layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self._images, self._labels = _near(data, device)
        self._mean, self._std = (
            255 * torch.tensor(values, device=device).view(1, -1, 1, 1)
            for values in (recipe.mean, recipe.std)
        )

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields step, images (batch, channels, height, width) and labels, starting at step `first`."""
        order = shuffled(stream_name(self._seed, "order", epoch), len(self._labels))
        # A single copy: one copy per step would synchronize with the device at every step.
        order_near = order.to(self._images.device)
        name = stream_name(self._seed, "augmentation", epoch)
        for step in range(first, self.steps):
            here = slice(step * self.batch_size, (step + 1) * self.batch_size)
            index = order_near[here][self._own]
            images = self._images[index].to(self._device, non_blocking=True)
            labels = self._labels[index].to(self._device, non_blocking=True)
            images = self._augmentation(images, RandomStreams(name, index, index.device))
            if self._mixture is not None:
                own = order[here][self._own]
                images = self._mixture(images, RandomStreams(f"augmix, {name}", own))
            values = images.to(torch.float32, copy=True).sub_(self._mean).div_(self._std)
            yield step, values.contiguous(memory_format=self._layout), labels


def _near(data: TensorImages, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images, on the device if they take less than half of its free memory."""
    images = data.images
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return images.to(device), data.labels.to(device)
    return images, data.labels
