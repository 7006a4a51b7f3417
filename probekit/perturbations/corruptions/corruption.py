"""The published corruptions, on batches of images in [0, 1].

Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
perturbations, ICLR 2019, define 15 types and 4 extra ones with five severities each. Their constants
depend on the image size (`constants.toml`); the procedures are in `noise`, `blur`, `weather`, `digital`
and `spatter`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

import torch
from torch import Tensor

from probekit.checks import integer, one_of, sample_indices
from probekit.errors import DataError, warn
from probekit.models.inputs import check_pixels
from probekit.perturbations.corruptions import blur, digital, noise, spatter, weather
from probekit.runtime.randomness import RandomStreams
from probekit.runtime.settings import in_own_settings

Procedure: TypeAlias = Callable[[Tensor, Any, RandomStreams], Tensor]

_STANDARD: tuple[Procedure, ...] = (  # in the order in which the papers list them
    noise.gaussian_noise, noise.shot_noise, noise.impulse_noise,
    blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur,
    weather.snow, weather.frost, weather.fog, weather.brightness,
    digital.contrast, digital.elastic_transform, digital.pixelate, digital.jpeg_compression,
)  # fmt: skip
_EXTRA: tuple[Procedure, ...] = (  # reserved for validation
    noise.speckle_noise, blur.gaussian_blur, spatter.spatter, digital.saturate,
)  # fmt: skip
_PROCEDURES = {procedure.__name__: procedure for procedure in (*_STANDARD, *_EXTRA)}
CORRUPTIONS = tuple(procedure.__name__ for procedure in _STANDARD)
EXTRA_CORRUPTIONS = tuple(procedure.__name__ for procedure in _EXTRA)
SEVERITIES = (1, 2, 3, 4, 5)
TABLE_SIZES = (32, 64, 224)
# The published procedures truncate their results to 8 bits, except for these, which round.
_ROUNDED = {"motion_blur", "pixelate", "jpeg_compression"}

# Batches are split so that at most this many values are processed at once.
_VALUES_AT_ONCE_ON_CPUS = 1 << 20
_VALUES_AT_ONCE_ON_ACCELERATORS = 1 << 24

_sizes_reported: set[tuple[int, int]] = set()


@dataclass(frozen=True)
class Corruption:
    """One corruption type at one severity, ready to be applied to batches.

    The arguments are those of `corrupt`.

    Raises:
        OptionError: The type, severity, seed or table does not exist.

    Example:
        >>> import probekit as pk
        >>> images, _ = pk.images_at(pk.load_data("fashion-mnist"), [0, 1])
        >>> fog = pk.Corruption("fog", 3, table=32)
        >>> fog
        Corruption('fog', severity=3, seed=0, table=32)
        >>> fog(images).shape
        torch.Size([2, 1, 28, 28])
    """

    name: str
    severity: int
    seed: int = 0
    table: int | None = None
    quantize: bool = True

    def __post_init__(self) -> None:
        one_of("corruption", self.name, CORRUPTIONS + EXTRA_CORRUPTIONS)
        integer("severity", self.severity, least=SEVERITIES[0], most=SEVERITIES[-1])
        integer("seed", self.seed)
        if self.table is not None:
            one_of("table", self.table, TABLE_SIZES)

    def __repr__(self) -> str:
        table = "" if self.table is None else f", table={self.table}"
        quantize = "" if self.quantize else ", quantize=False"
        return (
            f"Corruption({self.name!r}, severity={self.severity}, seed={self.seed}"
            f"{table}{quantize})"
        )

    def table_for(self, images: Tensor) -> int:
        """The published image size, 32, 64 or 224, whose constants are used for these images."""
        return self.table or nearest_table(*images.shape[-2:])

    @in_own_settings
    def __call__(self, images: Tensor, index: Sequence[int] | Tensor | None = None) -> Tensor:
        """Corrupts images; see `corrupt`."""
        _check_images(images)
        constants = constants_of(
            self.name, self.severity, self.table or _reported_nearest_table(images)
        )
        streams = RandomStreams(
            f"seed {self.seed}, {self.name}, severity {self.severity}",
            sample_indices(index, len(images)),
            images.device,
        )
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        on_cpu = images.device.type == "cpu"
        values = _VALUES_AT_ONCE_ON_CPUS if on_cpu else _VALUES_AT_ONCE_ON_ACCELERATORS
        step = max(values // max(images[:1].numel(), 1), 1)
        with torch.no_grad():
            for start in range(0, len(images), step):
                part = slice(start, start + step)
                clean = images[part].contiguous()
                if images.dtype not in (torch.float32, torch.float64):
                    clean = clean.float()
                    # Half precision is too coarse to truncate k/255 to 8-bit levels.
                    clean = (clean * 255).round() / 255 if self.quantize else clean
                damaged = _PROCEDURES[self.name](clean, constants, streams[part]).clamp(0, 1)
                if self.quantize:
                    slack = 0.5 if self.name in _ROUNDED else blur.SLACK
                    damaged = damaged.mul_(255).add_(slack).floor_().to(images.dtype).div_(255)
                result[part] = damaged
        return result


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
    """Corrupt images as in CIFAR-10-C, Tiny ImageNet-C and ImageNet-C.

    The corruption of an image depends only on the seed, the type, the severity and the image's index,
    up to rounding. It does not depend on the batch, the order, the process or the device.

    Args:
        images: Float (n, channels, height, width) in [0, 1], gray or color, on any device.
        corruption: One of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: 1 to 5.
        seed: Seed of the random streams.
        index: The images' indices in their data set, n non-negative integers; by default 0 to n − 1.
        table: The published image size whose constants are used, 32, 64 or 224. By default the one
            nearest to the shorter side, with a warning for each image size that is not a published one.
        quantize: Round the result to 8 bits, as in the published files: down to steps of 1/255, or
            to the nearest where the published procedure rounds (motion blur, pixelate, JPEG).
            Intermediate results that the procedures store in 8 bits are rounded in any case.

    Returns:
        The corrupted images in [0, 1], of the same shape, dtype and device.

    Raises:
        OptionError: An option is invalid, or the frost photographs are not installed.
        DataError: The images or the index do not have the required form.

    Example:
        >>> import probekit as pk
        >>> images, _ = pk.images_at(pk.load_data("fashion-mnist"), [10, 11])
        >>> noisy = pk.corrupt(images, "gaussian_noise", 5, index=[10, 11], table=32)
        >>> alone = pk.corrupt(images[1:], "gaussian_noise", 5, index=[11], table=32)
        >>> torch.equal(noisy[1], alone[0])
        True
    """
    return Corruption(corruption, severity, seed, table, quantize)(images, index)


def constants_of(corruption: str, severity: int, table: int) -> Any:
    """The published constants of a type: one number, or a tuple if there are several."""
    found = _tables()[corruption][str(table)][severity - 1]
    if corruption == "zoom_blur":
        count, step = found
        return tuple(1 + step * number for number in range(count))
    if corruption == "elastic_transform" and table == 224:
        return tuple(share * 244 / 224 for share in found)
    return tuple(found) if isinstance(found, list) else found


@cache
def _tables() -> dict[str, dict[str, list[Any]]]:
    file = resources.files("probekit.perturbations.corruptions") / "constants.toml"
    return tomllib.loads(file.read_text("utf-8"))


def nearest_table(height: int, width: int) -> int:
    """The published image size nearest to the shorter side; ties go to the larger size."""
    side = min(height, width)
    return min(TABLE_SIZES, key=lambda size: (abs(size - side), -size))


def _reported_nearest_table(images: Tensor) -> int:
    height, width = images.shape[-2:]
    table = nearest_table(height, width)
    if (height, width) != (table, table) and (height, width) not in _sizes_reported:
        _sizes_reported.add((height, width))
        warn(
            "corruption constants are published for images of 32, 64 and 224 pixels; these have "
            f"{height} by {width}, so those for {table} are used (table={table}, or --table "
            f"{table}, chooses them without this warning)"
        )
    return table


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        known = isinstance(images, Tensor)
        found = f"shape {tuple(images.shape)}" if known else type(images).__name__
        raise DataError(
            f"a corruption needs a tensor (n, channels, height, width) with 1 or 3 channels, not {found}"
        )
    check_pixels(images, "a corruption")
