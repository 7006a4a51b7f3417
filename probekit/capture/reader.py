"""Computes the recorded tensor from a layer's output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.masks import masked_mean
from probekit.capture.outputs import shares_memory
from probekit.capture.pooling import pool
from probekit.capture.scout import Tokens
from probekit.errors import LayerError

__all__ = ["Reader", "Reading"]

Reading: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reader:
    """Reads layers' outputs.

    Attributes:
        reading: Maps (batch, units, *positions) to the recorded tensor.
        tokens: The tokens of a sequence to use.
        grad: Keep the recorded tensors in the autograd graph.
    """

    reading: Reading
    tokens: Tokens
    grad: bool

    def read(
        self,
        layer: Layer,
        tensor: Tensor,
        batch: int,
        in_graph: bool,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the recorded tensor of a layer's output, always a new tensor and never a view.

        Args:
            layer: The layer.
            tensor: Its output.
            batch: The number of samples.
            in_graph: Whether the forward pass started with gradients enabled.
            mask: (batch, positions), false for padding, which means exclude; None uses all positions.

        Raises:
            LayerError: The output has an unexpected number of rows, or lost its gradients.
        """
        if tensor.is_nested:
            raise LayerError(
                f"layer {layer.name!r} gives a nested tensor, as nn.TransformerEncoder makes of padded "
                "tokens: its samples have different numbers of tokens, and what is padded depends on "
                "the way it is computed; build the encoder with enable_nested_tensor=False, or set it "
                "on the built one (encoder.use_nested_tensor = False)"
            )
        rows = tensor.shape[layer.batch_axis] if tensor.ndim > layer.batch_axis else 0
        if rows != batch * layer.windows or tensor.ndim != len(layer.shape) + 1:
            raise LayerError(
                f"layer {layer.name!r} gave {rows} rows for {batch} samples where "
                f"{batch * layer.windows} were expected; inputs of another size need a new "
                "recorder, and a layer that has no axis for the batch cannot be recorded"
            )
        if self.grad and in_graph and not torch.is_grad_enabled():
            raise LayerError(
                f"layer {layer.name!r} runs without gradients inside a forward pass that has them, as "
                "reentrant activation checkpointing does; use use_reentrant=False, or leave it out"
            )
        maps = layer.arrange(tensor if self.grad else tensor.detach())
        if self.tokens != "all" and maps.ndim > 2:
            maps = maps[:, :, layer.chosen(self.tokens)]
            mask = None if mask is None else mask[:, layer.chosen(self.tokens)]
            maps = maps[:, :, 0] if self.tokens == "class" else maps
        if mask is not None and maps.ndim > 2:
            if self.reading is not pool:
                raise LayerError(
                    f"layer {layer.name!r} has padding among its positions, which only a mean over the "
                    "positions can leave out; pool them (spatial='mean'), or give samples of one length "
                    "without an attention_mask"
                )
            return masked_mean(maps, mask)
        reading = self.reading(maps)
        if self.reading is not pool and shares_memory(tensor, reading):
            return reading.clone(memory_format=torch.contiguous_format)
        return reading
