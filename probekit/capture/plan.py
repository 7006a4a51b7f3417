"""Lists the layers that would be recorded, from one small forward pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.recorder import Layers, Recorder, Tokens
from probekit.capture.scout import doubts
from probekit.capture.verify import layers_at_larger_size, verify_layers
from probekit.errors import LayerError, ModelError, first_line, some_of, warn
from probekit.models.image_model import Model, ModelOrName, borrow
from probekit.models.inputs import FAILURES, KeywordInputs, explained_failure
from probekit.models.loading import load_model
from probekit.runtime.settings import in_own_settings


@in_own_settings
def scout_layers(
    model: Model,
    images: Tensor | KeywordInputs,
    layers: Layers = None,
    *,
    tokens: Tokens = "all",
    output: int | str | None = None,
) -> tuple[list[Layer], Any]:
    """Finds the layers that a selection matches, and the model's output, with one forward pass.

    A single image is batched with its mirror image, since finding the batch axis requires several
    samples. Layers that fold windows into the batch axis are recorded only if each sample's windows
    are contiguous there; passes over the images in both orders check this.
    """
    with borrow(model) as device, torch.no_grad():
        found, _, result = _scout(model, images.to(device), layers, tokens, output)
        return found, result


def plan(
    model: ModelOrName,
    images: Any,
    layers: Layers = None,
    *,
    spatial: Literal["mean", "none"] = "mean",
    tokens: Tokens = "all",
    output: int | str | None = None,
    verify: bool = False,
) -> pd.DataFrame:
    """Lists the layers that would be recorded, as a table.

    Args:
        model: A module, an `ImageModel` or a name, as for `analyze`.
        images: A few model inputs (two are enough), or data as for `analyze`.
        layers: The layers, as for `Recorder`.
        spatial: Whether `bytes_per_sample` counts pooled activations or whole maps.
        tokens: As for `Recorder`.
        output: As for `Recorder`.
        verify: Compare the recorded values with an independent forward pass, at two batch sizes
            and, if the model accepts them, two image sizes.

    Returns:
        One row per layer, in execution order: `layer`, `type`, `shape` (of the output, without the
        batch axis), `unit_axis` (batch axis included), `units`, `unit_axis_certain`, `evidence` (for
        the unit axis), `calls` (of the module per forward pass) and `bytes_per_sample`.
        `attrs["notes"]` holds messages about what is uncertain or missing, which are also issued as
        warnings. `verify` adds the columns `values` (whether recorded values equal those of the
        independent pass), `axis` (what makes the unit axis certain, or that it is uncertain) and
        `complete` (whether all calls were recorded), and the `attrs` `batch_sizes`, `image_sizes`,
        `missing` (activation functions that are not layers) and `classifier` (the last activation
        function, if it is not a layer).

    Raises:
        LayerError: As for `Recorder`.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> images, _ = pk.images_at(pk.load_data("fashion-mnist", model), [0, 1])
        >>> pk.plan(model, images, "layer3.*.relu2")[["layer", "type", "shape", "units"]]
                    layer  type       shape  units
        0  layer3.0.relu2  ReLU  (64, 7, 7)     64
        1  layer3.1.relu2  ReLU  (64, 7, 7)     64
        2  layer3.2.relu2  ReLU  (64, 7, 7)     64
    """
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    if not hasattr(images, "to"):  # neither tensors nor named inputs
        from probekit.capture.stream import open_model_and_data  # which imports this module

        model, batches = open_model_and_data(model, images)
        images = batches.peek().images[:2]
    with borrow(model) as device, torch.no_grad(), explained_failure(images):
        found, notes, _ = _scout(model, images.to(device), layers, tokens, output)
    table = pd.DataFrame(
        {
            "layer": layer.name,
            "type": layer.type,
            "shape": layer.shape,
            "unit_axis": layer.unit_axis,
            "units": layer.units,
            "unit_axis_certain": layer.certain,
            "evidence": layer.evidence,
            "calls": layer.calls,
            "bytes_per_sample": layer.itemsize
            * layer.units
            * (1 if spatial == "mean" else prod(layer.positions)),
        }
        for layer in found
    )
    table.attrs["notes"] = notes
    if verify:
        with borrow(model) as device, torch.no_grad(), explained_failure(images):
            batch = _several(images.to(device))
            report, about = verify_layers(model, batch, found, layers, tokens=tokens, output=output)
        attributes = table.attrs | about
        table = table.join(pd.DataFrame(report))
        table.attrs = attributes
    return table


def _several(images: Any) -> Any:
    """A single image with its mirror image, or a single sample of named inputs twice."""
    if len(images) > 1:
        return images
    return torch.cat([images, images.flip(-1)]) if isinstance(images, Tensor) else images[[0, 0]]


def _scout(
    model: Model,
    images: Tensor | KeywordInputs,
    layers: Layers,
    tokens: Tokens,
    output: int | str | None,
) -> tuple[list[Layer], list[str], Any]:
    """Returns the layers, messages about what is uncertain or missing, and the model's output.

    A single image whose pair with its mirror image fails is passed alone, for models that take one
    sample at a time.
    """
    try:
        return _found(model, _several(images), layers, tokens, output)
    except (*FAILURES, LayerError) as error:
        several = len(images) > 1 and isinstance(error, LayerError)
        if isinstance(error, torch.OutOfMemoryError) or several:
            raise
        try:
            alone = _found(model, images[:1], layers, tokens, output)
        except (*FAILURES, LayerError):
            raise error from None
        if len(images) == 1:
            return alone
        raise ModelError(
            f"the model runs on one sample and fails on {len(images)} ({first_line(error)}); use "
            "batch_size=1, and plan with one sample"
        ) from error


def _found(
    model: Model,
    images: Tensor | KeywordInputs,
    layers: Layers,
    tokens: Tokens,
    output: int | str | None,
) -> tuple[list[Layer], list[str], Any]:
    """`_scout` with these images; more passes take them in these orders."""
    with _Finder(model, layers, tokens=tokens, output=output) as recorder:
        result = recorder(images)
        found = recorder.layers
        first = recorder.activations
        order = _OTHER_ORDER if len(images) > 1 else [0]
        mixed = set(_mixed(recorder, images[order], first, order))
        if len(images) > 1:
            for place in (0, 1):
                mixed |= _mixed_by_company(recorder, images, first, place)
    found = [
        replace(layer, certain=True) if _follows_images(layer, first) else layer for layer in found
    ]
    if not all(layer.certain for layer in found):
        # The number of units is the same for images of another size, if the model accepts one.
        names = [layer.name for layer in found]
        others = layers_at_larger_size(model, images, names, tokens, output)
        found = [_compared(layer, others.get(layer.name)) for layer in found]
    sentences = doubts(found)
    if mixed:
        sentences.append(
            f"the values of {some_of([one.name for one in found if one.name in mixed])} depend on the "
            "other samples of the batch or on chance, as with a maximum over the batch, batch norm without "
            "running statistics or dropout that is always on; they change with batch_size, the order of "
            "the samples and the seed"
        )
    for sentence in sentences:
        warn(sentence)
    return found, recorder.notes + sentences, result


class _Finder(Recorder):
    """A recorder that does not warn about uncertain layers; the caller does."""

    _reports_doubts = False


def _compared(layer: Layer, other: Layer | None) -> Layer:
    """Determines the unit axis of a layer, if uncertain, from its shape for images of another size."""
    if layer.certain or other is None or len(other.shape) != len(layer.shape):
        return layer
    same = [i for i, size in enumerate(layer.shape) if size == other.shape[i]]
    if len(same) != 1 or layer.batch_axis != other.batch_axis or layer.windows > 1:
        return layer
    axis = same[0] + (same[0] >= layer.batch_axis)
    return replace(
        layer, unit_axis=axis, units=layer.shape[same[0]], certain=True, evidence="image size"
    )


_OTHER_ORDER = [1, 0, 1, 1]
"""Two images in another order and in other company."""


def _mixed(
    recorder: Recorder,
    batch: Tensor | KeywordInputs,
    before: dict[str, Tensor],
    order: Sequence[int],
) -> list[str]:
    """The layers whose values depend on the order and the other samples of the batch.

    The first samples of the batch are those that were at the places in `order` before.
    """
    try:
        recorder(batch)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"the model runs on one batch and then fails on one of {len(batch)} samples "
            f"({first_line(error)}): it keeps tensors from one forward pass to the next, or accepts only "
            "some numbers of samples; reset its state in forward, or wrap it"
        ) from error
    mixed = []
    for layer in recorder.layers:
        if layer.name not in recorder.activations:
            raise LayerError(
                f"layer {layer.name!r} was reached in one forward pass but not in another; exclude it"
            )
        one, other = before[layer.name][order], recorder.activations[layer.name][: len(order)]
        close = 1e-2 * float(one.abs().nan_to_num(0, 0).max()) if one.numel() else 0
        if torch.allclose(one, other, rtol=0, atol=close, equal_nan=True):
            continue
        if len(order) > 1 and (layer.windows > 1 or not layer.certain):
            raise LayerError(
                f"layer {layer.name!r} has {layer.windows * len(order)} rows for {len(order)} "
                "samples, which change with the order of the samples, so its activations cannot be "
                "assigned to samples; exclude it"
            )
        mixed.append(layer.name)
    return mixed


def _mixed_by_company(
    recorder: Recorder, images: Tensor | KeywordInputs, before: dict[str, Tensor], place: int
) -> set[str]:
    """The layers in which an image has other values beside ten times the other one, or beside itself.

    The larger range reveals scales that are taken from the whole batch, as in dynamic quantization.
    """
    with suppress(Exception):  # models that refuse images of another range
        if isinstance(images, Tensor) and images.is_floating_point():
            company = (10 - 20 * place) * images[[1 - place]]
            batch = torch.cat([images[[place]], company])
            return set(_mixed(recorder, batch, before, [place]))
    return set(_mixed(recorder, images[[place, place]], before, [place]))


def _follows_images(layer: Layer, values: dict[str, Tensor]) -> bool:
    """Whether a layer's values, which `_mixed` compared in several orders, show where its samples are."""
    rows = values[layer.name]
    differ = len(rows) > 1 and not torch.equal(rows[0], rows[1])
    return differ and layer.windows == 1 and layer.evidence not in ("", "assumed")
