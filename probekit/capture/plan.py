"""What would be recorded, told in advance from one small forward pass."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.recorder import Layers, Recorder, Tokens
from probekit.errors import LayerError
from probekit.models.image_model import borrow

__all__ = ["plan", "scout_layers"]


def scout_layers(
    model: Any,
    images: Tensor,
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
        recorder, result = _scout(model, images.to(device), layers, tokens, output)
        return recorder.layers, result


def _scout(
    model: Any, images: Tensor, layers: Layers, tokens: Tokens, output: int | str | None
) -> tuple[Recorder, Any]:
    if len(images) == 1:
        images = torch.cat([images, images.flip(-1)])
    with Recorder(model, layers, tokens=tokens, output=output) as recorder:
        result = recorder(images)
        if any(layer.windows > 1 for layer in recorder.layers):
            _check_windows(recorder, images)
    return recorder, result


def _check_windows(recorder: Recorder, images: Tensor) -> None:
    """Compares what each of several samples gives in one order and in the reverse order."""
    recorder(images)
    forth = recorder.activations
    recorder(images.flip(0))
    back = recorder.activations
    for layer in recorder.layers:
        one, other = forth[layer.name], back[layer.name].flip(0)
        if layer.windows > 1 and not torch.allclose(one, other, rtol=1e-2, atol=1e-4):
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
) -> pd.DataFrame:
    """The layers that would be recorded, as a table.

    Args:
        model: A module or an `ImageModel`.
        images: A few inputs (two are enough), as the model takes them.
        layers: Which layers, as for `Recorder`.
        spatial: Whether `bytes_per_sample` counts pooled activations or whole maps.
        tokens: As for `Recorder`.
        output: As for `Recorder`.

    Returns:
        One row a layer, in execution order: `layer`, `type`, `shape` (of the output, without the
        batch axis), `unit_axis` (batch axis included), `units`, `calls` (of the module in a forward
        pass) and `bytes_per_sample`. `attrs["notes"]` are sentences on what is uncertain or missing,
        which are warned of too.

    Raises:
        LayerError: As `Recorder`.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> plan(net, torch.rand(2, 3, 6, 6))[["layer", "type", "shape", "units"]]
          layer  type      shape  units
        0     1  ReLU  (8, 4, 4)      8
    """
    with borrow(model) as device, torch.no_grad():
        recorder, _ = _scout(model, images.to(device), layers, tokens, output)
    table = pd.DataFrame(
        {
            "layer": layer.name,
            "type": layer.type,
            "shape": layer.shape,
            "unit_axis": layer.unit_axis,
            "units": layer.units,
            "calls": layer.calls,
            "bytes_per_sample": layer.itemsize
            * layer.units
            * (1 if spatial == "mean" else prod(layer.positions)),
        }
        for layer in recorder.layers
    )
    table.attrs["notes"] = recorder.notes
    return table
