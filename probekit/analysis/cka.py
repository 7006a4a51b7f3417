"""Similarity of the layers of one or two models: linear CKA, streamed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.readouts import Activations
from probekit.capture.recorder import Layers, Tokens
from probekit.capture.stream import PassOptions, find_layers, open_model_and_data, stream
from probekit.checks import integer, number
from probekit.data.batches import Batch, Batches
from probekit.errors import DataError, OptionError
from probekit.models.identity import describe
from probekit.models.image_model import Model, ModelOrName, as_module
from probekit.models.inputs import tensors_of
from probekit.results.labels import strings
from probekit.results.provenance import provenance
from probekit.runtime.settings import in_own_settings
from probekit.statistics.base import check_memory, merged
from probekit.statistics.hsic import LinearHSIC

Key: TypeAlias = "Literal['both'] | tuple[int, int]"  # or the sums of one layer of a side


@in_own_settings
def cka(
    model: ModelOrName,
    other: ModelOrName | None = None,
    data: Any = None,
    layers: Layers = None,
    other_layers: Layers = None,
    *,
    level: float = 0.95,
    blocks: int = 10,
    memory: int = 4 * 2**30,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
    tokens: Tokens = "all",
) -> xr.Dataset:
    """Computes linear CKA between the layers of one model, of two models, or of two checkpoints.

    A value of 1 means that the pooled activations of two layers are equal up to rotation, scale and
    shift; a value near 0 means that they are unrelated. HSIC is estimated without bias, so few samples
    do not inflate the value, which may fall slightly below 0. Memory does not depend on the number of
    samples.

    Args:
        model: A module, an `ImageModel` or a name, as for `analyze`.
        other: The other model; None compares the layers of one model with each other.
        data: As for `analyze`; labels are not used. For two models it is read twice.
        layers: As for `analyze`.
        other_layers: Layers of the other model; None selects them as for the first model.
        level: Coverage of the intervals.
        blocks: Number of blocks of samples, which the jackknife leaves out one at a time.
        memory: Maximum number of bytes for the sums of all pairs of layers.
        seed: Seed of the sample that `limit` draws.
        batch_size, limit, device, progress, tokens: As for `analyze`.

    Returns:
        `cka`, `cka_low`, `cka_high` and `cka_error` (layer, other_layer): the estimate, the ends of its
        t interval from a block jackknife over samples, and the standard error. NaN for a layer that
        does not vary. The attributes include the provenance.

    Raises:
        DataError: There are too few samples, or the data can be read only once but two models need it.
        OptionError: There is no data, or the sums would need more than `memory`.

    Source:
        Kornblith et al. 2019 (arXiv 1905.00414); unbiased HSIC: Nguyen et al. 2021 (arXiv 2010.15327).

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> found = pk.cka(model, data=data, layers="layer3.*.relu2", limit=50)
        >>> found["cka"].values.diagonal().round(3)
        array([1., 1., 1.])
    """
    for one in (model, other):
        if one is not None and not isinstance(one, str | os.PathLike):
            as_module(one)
    if data is None:
        raise OptionError("data is missing; for a single model, write cka(model, data=data)")
    integer("blocks", blocks, least=2)
    number("level", level, above=0, below=1)
    options = PassOptions(tokens, None, device, progress)
    models = [model] if other is None else [model, other]
    chosen = [layers, layers if other_layers is None else other_layers][: len(models)]
    sides = [
        open_model_and_data(one, data, batch_size=batch_size, limit=limit, seed=seed)
        for one in models
    ]
    if len(sides) > 1 and not sides[0][1].repeatable:
        raise DataError(
            f"{sides[0][1].name} can be read only once, and two models need it twice; give a list of "
            "batches, a DataLoader or a data set"
        )
    found = [
        find_layers(one, batches, choice, options)
        for (one, batches), choice in zip(sides, chosen, strict=True)
    ]
    widths = [tuple(layer.units for layer in side) for side in found]
    needed = sum(widths[0]) * sum(widths[-1])
    if other is not None:
        needed += sum(width**2 for side in widths for width in side)
    what = f"CKA of {len(found[0])} with {len(found[-1])} layers"
    check_memory(8 * blocks * needed, memory, what, "choose fewer layers")
    table = _with_intervals(_ratio(_stream_both(sides, found, widths, blocks, options)), level)
    for dim, side in (("layer", found[0]), ("other_layer", found[-1])):
        table = table.assign_coords({dim: strings([layer.name for layer in side])})
    table.attrs["provenance"] = provenance(
        model=describe(sides[0][0]),
        other=describe(sides[-1][0]),
        data=sides[0][1].provenance(),
        tokens=tokens,
        seed=seed,
        level=level,
        blocks=blocks,
    )
    return table


def _stream_both(
    sides: Sequence[tuple[Model, Batches]],
    found: Sequence[Sequence[Layer]],
    widths: Sequence[tuple[int, ...]],
    blocks: int,
    options: PassOptions,
) -> dict[Key, LinearHSIC]:
    """The sums of all pairs of layers as `both` and, for two models, of each layer with itself."""
    sums: dict[Key, LinearHSIC] = {"both": LinearHSIC(widths[0], widths[-1], blocks)}
    if len(sides) > 1:
        for side, sizes in enumerate(widths):
            for place, width in enumerate(sizes):
                sums[side, place] = LinearHSIC((width,), (width,), blocks)
    with ExitStack() as stack:
        streams = [
            stack.enter_context(stream(one, batches, layers, [Activations()], options, "cka"))
            for (one, batches), layers in zip(sides, found, strict=True)
        ]
        for observations in zip(*streams, strict=True):
            index = observations[0].batch.index
            if not all(_is_same(observations[0].batch, one.batch) for one in observations):
                raise DataError(
                    "the data yielded different samples for the two models; give data that stays the same"
                )
            tables: list[list[Tensor]] = [list(one.tables[0].values()) for one in observations]
            wide = [torch.cat([table.cpu().double() for table in side], 1) for side in tables]
            sums["both"].update(wide[0], wide[-1], index)
            for key, one in sums.items():
                if isinstance(key, tuple):
                    side, place = key
                    one.update(tables[side][place].cpu(), tables[side][place].cpu(), index)
    return merged(sums)


def _is_same(one: Batch, other: Batch) -> bool:
    """Whether batches have the same samples; images are compared where both models take the same form."""
    if not (
        torch.equal(one.index, other.index) and torch.equal(one.labels.cpu(), other.labels.cpu())
    ):
        return False
    pairs = zip(tensors_of(one.images), tensors_of(other.images), strict=False)
    return all(
        bool((first.cpu() == second.cpu()).all())
        for first, second in pairs
        if (first.shape, first.dtype) == (second.shape, second.dtype)
    )


def _with_intervals(ratios: npt.NDArray[np.float64], level: float) -> xr.Dataset:
    """The table of the CKA and of its t intervals, from the output of `_ratio`."""
    from scipy import stats

    values, *left_out = ratios
    blocks = len(left_out)
    error = np.sqrt((blocks - 1) * np.var(left_out, axis=0))
    margin = stats.t.ppf((1 + level) / 2, blocks - 1) * error
    columns = (
        ("cka", values, "linear CKA"),
        ("cka_low", values - margin, "lower end of the interval of the CKA"),
        ("cka_high", values + margin, "upper end of the interval of the CKA"),
        ("cka_error", error, "standard error of the CKA"),
    )
    return xr.Dataset(
        {
            name: (("layer", "other_layer"), numbers, {"long_name": long_name})
            for name, numbers, long_name in columns
        }
    )


def _ratio(sums: dict[Key, LinearHSIC]) -> npt.NDArray[np.float64]:
    """CKA (1 + block, layer, other layer) from all samples, then without each of the blocks."""
    found = {key: one.estimates() for key, one in sums.items()}
    both = found["both"]
    if len(found) == 1:
        own = [np.diagonal(both, axis1=-2, axis2=-1)] * 2
    else:
        own = [
            np.stack([one[..., 0, 0] for key, one in found.items() if key[0] == side], -1)
            for side in (0, 1)
        ]
    product = own[0][..., :, None] * own[1][..., None, :]
    positive = (own[0] > 0)[..., :, None] & (own[1] > 0)[..., None, :]
    result: npt.NDArray[np.float64] = np.full(both.shape, np.nan)
    np.divide(both, np.sqrt(np.abs(product)), out=result, where=positive)
    return result
