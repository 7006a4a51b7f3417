"""The published corruptions, on batches of images in [0, 1].

Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
perturbations, ICLR 2019, define 15 types and 4 extra ones with five severities each. Their constants
depend on the image size (:mod:`probekit.perturbations.corruptions.constants`); what each type does is in
:mod:`probekit.perturbations.corruptions`.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.errors import DataError, OptionError, ProbekitWarning, close_matches
from probekit.perturbations.corruptions import blur, digital, noise, spatter, weather
from probekit.perturbations.corruptions.constants import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
    TABLE_SIZES,
    constants_of,
    nearest_table,
)
from probekit.perturbations.corruptions.procedure import Procedure
from probekit.runtime.memory import keep_freed_memory
from probekit.runtime.random_streams import RandomStreams

__all__ = ["CORRUPTIONS", "EXTRA_CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]

_PROCEDURES: dict[str, Procedure] = {
    **noise.PROCEDURES,
    **blur.PROCEDURES,
    **weather.PROCEDURES,
    **digital.PROCEDURES,
    **spatter.PROCEDURES,
}

_VALUES_AT_ONCE_ON_ACCELERATORS = 1 << 24
_MOST_VALUES_AT_ONCE_ON_CPUS = 1 << 22

_BITS_OF_ONE = 0x3F800000  # those of the float32 1.0

_CUT_OFF_SLACK = 1e-3  # in 8-bit steps; rounding errors below it do not cost a whole step

_sizes_told: set[tuple[int, int]] = set()


@dataclass(frozen=True)
class Corruption:
    """One corruption type at one severity, ready to be applied to batches.

    Args:
        name: one of ``CORRUPTIONS`` or ``EXTRA_CORRUPTIONS``.
        severity: 1 to 5.
        seed: of the random streams; an image's corruption depends on the seed, the type, the
            severity and the image's index alone.
        table: the published image size whose constants are used, 32, 64 or 224; by default the
            one nearest to the images' size.
        quantize: the result is stored in 8 bits, as the published files are: cut off to whole
            steps of 1/255, or rounded where the published procedure rounds.

    Raises:
        OptionError: an unknown type, or a severity, seed or table that does not exist.

    >>> fog = Corruption("fog", 3)
    >>> fog
    Corruption('fog', severity=3, seed=0)
    >>> images = torch.rand(2, 3, 32, 32)
    >>> fog(images).shape, fog.table_for(images)
    (torch.Size([2, 3, 32, 32]), 32)
    """

    name: str
    severity: int
    seed: int = 0
    table: int | None = None
    quantize: bool = True

    def __post_init__(self) -> None:
        _check_options(self.name, self.severity, self.seed, self.table)

    def __repr__(self) -> str:
        table = "" if self.table is None else f", table={self.table}"
        quantize = "" if self.quantize else ", quantize=False"
        return (
            f"Corruption({self.name!r}, severity={self.severity}, seed={self.seed}"
            f"{table}{quantize})"
        )

    def table_for(self, images: Tensor) -> int:
        """The published image size, 32, 64 or 224, whose constants these images get."""
        return self.table or nearest_table(*images.shape[-2:])

    def __call__(self, images: Tensor, index: Sequence[int] | Tensor | None = None) -> Tensor:
        """Corrupted images; see :func:`corrupt`."""
        return corrupt(
            images,
            self.name,
            self.severity,
            seed=self.seed,
            index=index,
            table=self.table,
            quantize=self.quantize,
        )


def corrupt(
    images: Tensor,
    corruption: str,
    severity: int = 1,
    *,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    table: int | None = None,
    quantize: bool = True,
) -> Tensor:
    """Corrupt images as CIFAR-10-C, Tiny ImageNet-C and ImageNet-C are.

    An image's corruption depends on seed, type, severity and the image's index alone (to rounding):
    not on its batch, the order, the process or the device.

    Args:
        images: float (n, channels, height, width) in [0, 1], grey or colour, on any device.
        corruption: one of ``CORRUPTIONS`` or ``EXTRA_CORRUPTIONS``.
        severity: 1 to 5.
        seed: of the random streams.
        index: the images' indices in their data set, n whole numbers; by default 0 to n − 1.
        table: the published image size whose constants are used, 32, 64 or 224. By default the
            nearest to the shorter side, which is said once for each size that is not one of them.
        quantize: the result is stored in 8 bits, as the published files are: cut off to whole
            steps of 1/255, or rounded where the published procedure rounds (motion blur, pixelate,
            JPEG). What the procedures do in 8 bits on the way is done so in any case.

    Returns:
        The corrupted images in [0, 1], of the same shape, dtype and device.

    Raises:
        OptionError: an option has a value that means nothing, or frost has no photographs.
        DataError: images or index are not of that form.

    >>> images = torch.full((2, 3, 32, 32), 0.5)
    >>> noisy = corrupt(images, "gaussian_noise", 5, index=[10, 11])
    >>> alone = corrupt(images[:1], "gaussian_noise", 5, index=[11])
    >>> torch.equal(noisy[1], alone[0])
    True
    """
    _check_options(corruption, severity, seed, table)
    _check_images(images)
    size = table or _said_nearest_table(images)
    streams = RandomStreams(
        f"seed {seed}, {corruption}, severity {severity}",
        _checked_index(index, len(images)),
        images.device,
    )
    procedure = _PROCEDURES[corruption]
    constants = constants_of(corruption, severity, size)
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    with torch.no_grad():
        for start, stop in _chunks(images, procedure):
            clean = _working_copy(images[start:stop], quantize)
            out = result[start:stop]
            # Fresh memory costs as much as arithmetic, so noise is drawn where the result will be.
            room = (
                out
                if out.dtype == torch.float32
                else clean.new_empty(clean.shape, dtype=torch.float32)
            )
            draws = procedure.draw(streams.part(start, stop), clean, constants, room)
            # Not before: from here on the images stay in the cache.
            _check_values(images[start:stop])
            damaged = procedure.apply(clean, constants, *draws)
            _store(damaged, procedure.storage if quantize else "exact", out=out)
    return result


def _chunks(images: Tensor, procedure: Procedure) -> Iterator[tuple[int, int]]:
    keep_freed_memory(images.device)
    if images.device.type == "cpu":
        # Each thread needs work of its own, and more of it the more threads there are to wake.
        values = procedure.values_at_once * torch.get_num_threads() ** 2
        values = min(values, _MOST_VALUES_AT_ONCE_ON_CPUS)
    else:
        values = _VALUES_AT_ONCE_ON_ACCELERATORS
    # Chunks of one size, at most half as large again: a small rest would cost almost as much as a
    # whole one.
    chunks = max(round(images.numel() / values), 1)
    step = max(math.ceil(len(images) / chunks), 1)
    for start in range(0, len(images), step):
        yield start, min(start + step, len(images))


def _working_copy(images: Tensor, quantize: bool) -> Tensor:
    """The images in the layout and precision that are worked in.

    Half precision holds k/255 too coarsely to be cut off to whole steps after, so such images take
    their nearest 8-bit level first.
    """
    if images.dtype in (torch.float32, torch.float64):
        return images.contiguous()
    images = images.float().contiguous()
    return images.mul_(255).round_().div_(255) if quantize else images


def _store(images: Tensor, storage: str, *, out: Tensor) -> None:
    """Write the images to ``out``, clipped to [0, 1] and brought to 8 bits as the storage says."""
    if storage == "as it is":
        out.copy_(images)
        return
    levels = out if out.dtype == images.dtype else torch.empty_like(images)
    if storage == "exact":
        torch.clamp(images, 0, 1, out=levels)
    else:
        slack = torch.tensor(0.5 if storage == "rounded" else _CUT_OFF_SLACK, dtype=images.dtype)
        torch.add(slack.to(images.device), images, alpha=255, out=levels)
        levels.clamp_(0, 255).floor_().div_(255)
    if levels is not out:
        out.copy_(levels)


def _said_nearest_table(images: Tensor) -> int:
    height, width = images.shape[-2:]
    table = nearest_table(height, width)
    if (height, width) != (table, table) and (height, width) not in _sizes_told:
        _sizes_told.add((height, width))
        warnings.warn(
            f"corruption constants are published for images of 32, 64 and 224 pixels; these have "
            f"{height} by {width}, so those for {table} are used (table={table} says so in advance)",
            ProbekitWarning,
            stacklevel=3,
        )
    return table


def _check_options(corruption: str, severity: int, seed: int, table: int | None) -> None:
    known = CORRUPTIONS + EXTRA_CORRUPTIONS
    if corruption not in known:
        raise OptionError(
            f"corruption {corruption!r} was asked for, which is none of the {len(known)} types; "
            f"{close_matches(str(corruption), known, what='corruption')}"
        )
    for name, value in (("severity", severity), ("seed", seed)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise OptionError(f"{name} {value!r} was asked for; give a whole number")
    if operator.index(severity) not in SEVERITIES:
        raise OptionError(f"severity {severity} was asked for; give one of 1, 2, 3, 4, 5")
    if table is not None and table not in TABLE_SIZES:
        raise OptionError(
            f"table {table!r} was asked for; constants are published for 32, 64 and 224 pixels: "
            "give one of these, or None for the nearest"
        )


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise DataError(
            f"images are a {type(images).__name__}; give a float tensor "
            "(n, channels, height, width) in [0, 1]"
        )
    if not images.is_floating_point():
        raise DataError(
            f"images are {images.dtype}; corruptions take floats in [0, 1]: "
            "give images.float() / 255"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"images have shape {tuple(images.shape)}; give (n, channels, height, width) with "
            "1 or 3 channels"
        )


def _check_values(images: Tensor) -> None:
    if images.dtype == torch.float32:
        # From 0 on, floats are in the order of their bits; what is negative comes before, NaN after.
        # Whole numbers compare in two thirds of the time.
        bits = torch.aminmax(images.view(torch.int32))
        if int(bits.min) >= 0 and int(bits.max) <= _BITS_OF_ONE:
            return
    lowest, highest = (float(value) for value in torch.aminmax(images.detach()))
    if lowest != lowest or highest != highest:
        raise DataError("images hold NaN; corruptions take finite values in [0, 1]")
    if lowest < 0:
        raise DataError(
            f"images go down to {lowest:.4g}; corruptions take values in [0, 1]: "
            "undo the normalization first"
        )
    if highest > 1:
        fix = "divide them by 255" if 2 < highest <= 255 else "undo the normalization first"
        raise DataError(f"images go up to {highest:.4g}; corruptions take values in [0, 1]: {fix}")


def _checked_index(index: Sequence[int] | Tensor | None, n: int) -> list[int]:
    if index is None:
        return list(range(n))
    if isinstance(index, Tensor) and index.ndim != 1:
        raise DataError(f"index has shape {tuple(index.shape)}; give one number for each image")
    values = index.tolist() if isinstance(index, Tensor) else list(index)
    if len(values) != n:
        raise DataError(f"index has {len(values)} entries for {n} images; give one for each image")
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
            raise DataError(f"index holds {value!r}; give whole numbers from 0 on")
    return [operator.index(value) for value in values]
