"""What would be recorded, told in advance from one small forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.recorder import Layers, Recorder, Tokens
from probekit.capture.scout import doubts, warn
from probekit.capture.verify import verify_layers
from probekit.errors import LayerError
from probekit.models.image_model import borrow
from probekit.models.inputs import KeywordInputs
from probekit.runtime.settings import in_own_settings

__all__ = ["plan", "scout_layers"]


@in_own_settings
def scout_layers(
    model: Any,
    images: Tensor | KeywordInputs,
    layers: Layers = None,
    *,
    tokens: Tokens = "all",
    output: int | str | None = None,
) -> tuple[list[Layer], Any]:
    """Finds the layers that a selection means, with one forward pass over a few images.

    A single image is joined by its mirror image, since only several samples show which axis is the
    batch. Layers that fold windows into the batch axis are recorded only if each sample's windows
    lie together there, which passes over the images in both orders check.

    Returns:
        The layers in execution order, and the model's output for the images.

    Raises:
        LayerError: As `Recorder`; or a layer that mixes samples in its batch axis.
    """
    with borrow(model) as device, torch.no_grad():
        found, _, result = _scout(model, images.to(device), layers, tokens, output)
        return found, result


def _scout(
    model: Any,
    images: Tensor | KeywordInputs,
    layers: Layers,
    tokens: Tokens,
    output: int | str | None,
) -> tuple[list[Layer], list[str], Any]:
    """The layers, sentences on what is uncertain or missing, and the model's output."""
    if len(images) == 1:
        images = (
            torch.cat([images, images.flip(-1)]) if isinstance(images, Tensor) else images[[0, 0]]
        )
    with _Finder(model, layers, tokens=tokens, output=output) as recorder:
        result = recorder(images)
        found = recorder.layers
        if any(layer.windows > 1 or not layer.certain for layer in found):
            _check_order(recorder, images)
    if not all(layer.certain for layer in found):
        found = _second_look(model, images, found, tokens, output)
    return found, recorder.notes + warn(doubts(found)), result


class _Finder(Recorder):
    """A recorder that leaves the review of what is uncertain to its user."""

    def _review(self, layers: Sequence[Layer]) -> list[str]:
        return []


def _second_look(
    model: Any,
    images: Tensor | KeywordInputs,
    layers: list[Layer],
    tokens: Tokens,
    output: int | str | None,
) -> list[Layer]:
    """Decides on unit axes by images of another size, of which the number of units is independent.

    A model that takes no other size leaves them as they are.
    """
    if isinstance(images, KeywordInputs) or images.ndim != 4:
        return layers
    height, width = images.shape[2:]
    larger = torch.nn.functional.interpolate(images.float(), (height + 32, width + 64))
    names = [layer.name for layer in layers]
    try:
        with _Finder(model, names, tokens=tokens, output=output) as recorder:
            recorder(larger.to(images.dtype))
    except Exception:
        return layers
    others = {layer.name: layer for layer in recorder.layers}
    return [_compared(layer, others.get(layer.name)) for layer in layers]


def _compared(layer: Layer, other: Layer | None) -> Layer:
    if layer.certain or other is None or len(other.shape) != len(layer.shape):
        return layer
    same = [i for i, size in enumerate(layer.shape) if size == other.shape[i]]
    if len(same) != 1 or layer.batch_axis != other.batch_axis or layer.windows > 1:
        return layer
    axis = same[0] + (same[0] >= layer.batch_axis)
    return replace(
        layer, unit_axis=axis, units=layer.shape[same[0]], certain=True, evidence="image size"
    )


def _check_order(recorder: Recorder, images: Tensor | KeywordInputs) -> None:
    """Compares what each of several samples gives in one order and in the reverse order."""
    recorder(images)
    forth = recorder.activations
    recorder(images[list(reversed(range(len(images))))])
    back = recorder.activations
    for layer in recorder.layers:
        one, other = forth[layer.name], back[layer.name].flip(0)
        doubtful = layer.windows > 1 or not layer.certain
        if doubtful and not torch.allclose(one, other, rtol=1e-2, atol=1e-4):
            raise LayerError(
                f"layer {layer.name!r} has {layer.windows * len(images)} rows for {len(images)} "
                "samples and does not keep each sample's rows together, so that its activations "
                "cannot be told apart by sample; leave it out"
            )


def plan(
    model: Any,
    images: Tensor,
    layers: Layers = None,
    *,
    spatial: Literal["mean", "none"] = "mean",
    tokens: Tokens = "all",
    output: int | str | None = None,
    verify: bool = False,
) -> pd.DataFrame:
    """The layers that would be recorded, as a table.

    Args:
        model: A module or an `ImageModel`.
        images: A few inputs (two are enough), as the model takes them.
        layers: Which layers, as for `Recorder`.
        spatial: Whether `bytes_per_sample` counts pooled activations or whole maps.
        tokens: As for `Recorder`.
        output: As for `Recorder`.
        verify: Compare what would be recorded with an independent forward pass, at two batch sizes
            and, if the model accepts them, two image sizes.

    Returns:
        One row per layer, in execution order: `layer`, `type`, `shape` (of the output, without the
        batch axis), `unit_axis` (batch axis included), `units`, `unit_axis_certain`, `evidence` (what
        the unit axis was decided by), `calls` (of the module in a forward pass) and
        `bytes_per_sample`. `attrs["notes"]` are sentences on what is uncertain or missing,
        also given as warnings. With `verify` also `values` (whether recorded values equal those of
        the plain pass), `axis` (what makes the unit axis certain, or that it is not) and `complete`
        (whether all calls are there); `attrs` has `batch_sizes`, `image_sizes`, `missing`, the
        activation functions that are no layer, and `classifier`, the last of all where that is none.

    Raises:
        LayerError: As `Recorder`.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> plan(net, torch.rand(2, 3, 6, 6))[["layer", "type", "shape", "units"]]
          layer  type      shape  units
        0     1  ReLU  (8, 4, 4)      8
    """
    with borrow(model) as device, torch.no_grad():
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
        with borrow(model) as device, torch.no_grad():
            batch = images.to(device)
            batch = torch.cat([batch, batch.flip(-1)]) if len(batch) == 1 else batch
            report, about = verify_layers(model, batch, found, layers, tokens=tokens, output=output)
        attributes = table.attrs | about
        table = table.join(pd.DataFrame(report))
        table.attrs = attributes
    return table
