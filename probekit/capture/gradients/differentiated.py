"""A model to differentiate with respect to its images, in backward or forward mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from probekit.capture.gradients.backward import (
    Forward,
    backward_gradients,
    check_separate,
    footprint,
    square_norms,
)
from probekit.capture.gradients.forward import Differentiator, directional_derivatives
from probekit.capture.gradients.private_copy import lend_private, unfused_attention
from probekit.capture.layers import unwrap
from probekit.errors import ProbekitError, first_line
from probekit.models.image_model import Model, as_module
from probekit.models.inputs import FAILURES

ReadOut: TypeAlias = Callable[[Any], AbstractContextManager[Forward]]


class Differentiated:
    """A function of a model's activations, differentiable in backward and forward mode.

    `forward` maps images to {name: (batch, units)}; a few `images` are used to estimate the memory that is
    required, and `memory` is the maximum number of bytes for intermediate results.
    """

    def __init__(self, model: Model, forward: Forward, images: Tensor, memory: int) -> None:
        self._model = model
        self._module = unwrap(as_module(model))
        self._forward = forward
        self._memory = memory
        self._graph, self._largest = footprint(forward, images[:1])
        self._differentiate = Differentiator(forward, self._module)
        self._checked = False

    @staticmethod
    @contextmanager
    def open(
        model: Model, images: Tensor, read_out: ReadOut, memory: int
    ) -> Iterator[Differentiated]:
        """Yields a private copy of a model, or the model itself if it cannot be copied.

        `read_out` is a context manager that yields, for a model, the function `forward`.
        """

        def once(one: object, inputs: Tensor) -> dict[str, Tensor]:
            with read_out(one) as forward:
                return dict(forward(inputs))

        with lend_private(model, images[:4], once) as private, read_out(private) as forward:
            yield Differentiated(private, forward, images, memory)

    def check(self, images: Tensor) -> None:
        """Checks, with the first batch, that samples are independent.

        A single sample is checked against its copy, if the model takes both at once.
        """
        if self._checked:
            return
        try:
            several = images[:4] if len(images) > 1 else torch.cat([images, images])
            check_separate(self._forward, several, self._module)
        except FAILURES:
            if len(images) > 1:
                raise
            self._memory = 0  # one row at a time
        self._checked = True

    def forward_mode_fails(self, images: Tensor, names: Sequence[str]) -> dict[str, str]:
        """The layers whose forward-mode derivative differs from a backward pass, and the reasons.

        An operation without a forward-mode derivative raises an error. Some custom operations silently
        drop the tangent instead, which gives zero gradients or gradients of a part of the network.
        Therefore, for each layer, the derivative along one direction is compared with one backward
        pass from a random combination of its units.
        """
        draw = torch.Generator().manual_seed(0)
        along = torch.randn(images.shape, generator=draw).to(images.device, images.dtype)
        try:
            with unfused_attention(self._model):
                tangents = self._differentiate(images, along[None])
        except ProbekitError as error:
            return dict.fromkeys(names, str(error))
        except (RuntimeError, TypeError, ValueError) as error:
            reason = f"it cannot be differentiated forward ({first_line(error)})"
            return dict.fromkeys(names, reason)
        weights = {
            name: torch.randn(tangents[name].shape[1:], generator=draw).to(tangents[name])
            for name in names
        }
        gradients = backward_gradients(self._forward, images, weights)
        reasons = {}
        for name, gradient in gradients.items():
            forward = (tangents[name][0] * weights[name]).double().flatten(1).sum(1)
            backward = (gradient * along).double().flatten(1).sum(1)
            scale = gradient.double().flatten(1).norm(dim=1)
            coarse = tangents[name].dtype in _HALF or images.dtype in _HALF
            if bool(((forward - backward).abs() > _TOLERANCE[coarse] * scale).any()):
                reasons[name] = (
                    f"the forward-mode derivative of layer {name!r} is not that of a backward pass: an "
                    "operation before it drops tangents"
                )
        return reasons

    def square_norms(self, images: Tensor, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared norms of the gradients of units, {name: (batch, units)}, in backward mode."""
        return square_norms(self._forward, images, units, self._memory, self._graph)

    def derivatives(
        self, images: Tensor, index: Tensor, probes: int, seed: int
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Derivatives along random directions, in the format of `directional_derivatives`."""
        rows = max(1, self._memory // (_LIVE * self._largest))
        with unfused_attention(self._model):
            yield from directional_derivatives(
                self._differentiate, images, index, probes=probes, seed=seed, rows=rows
            )


_HALF = (torch.float16, torch.bfloat16)
# Maximum difference of the two modes relative to the gradient norm, in single and in half precision.
_TOLERANCE = (0.01, 0.1)

# Number of live tensors of the largest size in a forward pass with tangents.
_LIVE = 8
