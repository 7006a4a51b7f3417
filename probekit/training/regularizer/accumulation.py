"""Observes a model in training: activations in the graph, and the accumulation of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.recorder import Layers, Recorder
from probekit.capture.subsets import Subset
from probekit.errors import LayerError, OptionError
from probekit.models.image_model import Model


class TrainingRecorder(Recorder):
    """A recorder that stays on a model; it records only passes with gradients, or only others."""

    def __init__(self, model: Model, layers: Layers, subset: Subset | None, **options: Any) -> None:
        self.without_gradients = False
        super().__init__(model, layers, grad=True, subset=subset, when=self._trains, **options)

    def take(self) -> dict[str, Tensor]:
        activations = super().take()
        if activations is None:
            raise LayerError(
                "there was no forward pass with gradients since the last call: call the model once "
                "before each penalty(labels), inside no torch.no_grad(), and give torch.compile no "
                "model before the regularizer knows its layers (images=...)"
            )
        if silent := [layer for layer in self.layers if layer.name not in activations]:
            raise LayerError(
                f"layer {silent[0].name!r} was reached in the first forward pass but not in this one"
                + (
                    ": it is a function, which cannot be recorded in a compiled model; train without "
                    "torch.compile, or leave it out of layers"
                    if silent[0].function
                    else "; leave it out of layers"
                )
            )
        return activations

    def drop(self) -> None:
        super().take()

    def _trains(self) -> bool:
        return torch.is_grad_enabled() != self.without_gradients


class Accumulation:
    """Detects, at the start of a backward pass, whether it adds to the gradients of an earlier one.

    Gradients accumulate if a parameter's gradient was empty when the last backward pass began, is not
    empty now, and no optimizer has changed any parameter in between.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: dict[Tensor, tuple[int, bool]] = {}

    def refuse(self, gradient: Tensor) -> None:
        """A backward hook for the penalty."""
        now: dict[Tensor, tuple[int, bool]] = {
            parameter: (parameter._version, self._empty(parameter))
            for parameter in self._module.parameters()
            if parameter.requires_grad
        }
        before, self._before = self._before, now
        # A step in between may change only some of the weights, for example if only the head is trained.
        if any(before.get(one, (version, True))[0] != version for one, (version, _) in now.items()):
            return
        for parameter, (version, empty) in now.items():
            if not empty and before.get(parameter) == (version, True):
                self._before = {}
                raise OptionError(
                    "gradients of several batches are being accumulated, and the selectivity of "
                    "each differs from that of all: collect the whole batch first, in `with "
                    "penalty.gathering()`, or ask for accumulation='each'"
                )

    def _empty(self, parameter: Tensor) -> bool:
        if parameter.grad is None:
            return True
        version, _ = self._before.get(parameter, (parameter._version, True))
        return version != parameter._version or not bool(parameter.grad.any())
