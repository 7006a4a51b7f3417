"""Finds the padding positions of a layer from the attention mask of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.layers import Layer
from probekit.capture.pooling import precise
from probekit.errors import LayerError


def token_mask(arguments: Mapping[str, Any]) -> Tensor | None:
    """The attention mask (batch, tokens) among a model's arguments, if it masks any tokens."""
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or torch.compiler.is_compiling():
        return None
    real = mask != 0
    return None if bool(real.all()) else real


def position_mask(mask: Tensor, layer: Layer, output: Tensor, model: nn.Module) -> Tensor | None:
    """The positions (batch, positions) of a layer's output that are not padding; None without positions.

    `mask` (batch, tokens) is true for tokens that are not padding. The positions of a layer are the
    tokens, or the outputs of a chain of convolutions before it, as in wav2vec 2.0, whose configuration
    lists the convolutions (`conv_kernel` and `conv_stride`).
    """
    shape = layer.arrange(output).shape[2:]
    if not shape:
        return None
    if len(shape) == 1 and len(output) and layer.windows == 1:
        if shape[0] == mask.shape[1]:
            return mask
        found = _after_convolutions(mask, shape[0], getattr(model, "config", None))
        if found is not None:
            return found
    raise LayerError(
        f"layer {layer.name!r} has the positions {tuple(shape)} for {mask.shape[1]} tokens, and it is "
        "not known which of them are padding; choose other layers, or use samples of equal length "
        "without an attention_mask"
    )


def masked_mean(maps: Tensor, mask: Tensor) -> Tensor:
    """The mean over the positions that are not padding: maps (batch, units, positions) as (batch, units).

    Half precision is averaged, and returned, in float32.
    """
    counts = mask.sum(1)
    if not bool(counts.all()):
        raise LayerError(
            f"sample {int((counts == 0).nonzero()[0])} of a batch consists only of padding, so it has no "
            "mean; exclude it"
        )
    kept = torch.where(mask[:, None], maps, maps.new_zeros(()))
    return kept.sum(2, dtype=precise(maps.dtype)) / counts[:, None]


def _after_convolutions(mask: Tensor, positions: int, config: object) -> Tensor | None:
    """The mask after the first convolutions of a model that produce this number of positions."""
    total, lengths = mask.shape[1], mask.sum(1)
    prefix = torch.arange(total, device=mask.device) < lengths[:, None]
    if not torch.equal(prefix, mask):  # padding is not at the end
        return None
    kernels, strides = (
        getattr(config, f"conv_{what}", None) or () for what in ("kernel", "stride")
    )
    for kernel, stride in zip(kernels, strides, strict=True):
        total = (total - kernel) // stride + 1
        lengths = (lengths - kernel).div(stride, rounding_mode="floor") + 1
        if total == positions:
            found: Tensor = torch.arange(total, device=mask.device) < lengths[:, None]
            return found
    return None
