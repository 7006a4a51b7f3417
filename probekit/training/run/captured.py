"""Forward and backward passes of a fixed shape as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_WARM_UP = 3

SetGradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def can_capture(device: torch.device, processes: int, precision: str) -> bool:
    """Whether a step can be a CUDA graph: one process on a CUDA GPU, without float16 loss scaling."""
    return device.type == "cuda" and processes == 1 and precision != "float16"


class CapturedGradients:
    """Sets the gradients of a batch by replaying a CUDA graph, captured at the first call.

    Small networks are limited by kernel launches. A step has about a thousand of them; a graph has one.
    Every later batch must have the shape of the first one. The next call overwrites the memory of the
    gradients and of the returned tensors.

    `set_gradients` takes images and labels, clears and recomputes the gradients, and returns two tensors. It
    may synchronize with the device only in its first call, and must do the same work for every batch.
    """

    def __init__(self, set_gradients: SetGradients, module: nn.Module) -> None:
        self._set_gradients = set_gradients
        self._module = module
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._graph is None:
            self._graph = self._capture(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._returned

    def _capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self._images, self._labels = images.clone(), labels.clone()
        before = [buffer.clone() for buffer in self._module.buffers()]
        side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]  # untyped in torch
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._set_gradients(self._images, self._labels)
        torch.cuda.current_stream(images.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Gradients must be None when the capture begins, so that every replay writes them in place.
        self._module.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._returned = self._set_gradients(self._images, self._labels)
        for buffer, value in zip(self._module.buffers(), before, strict=True):
            buffer.copy_(value)
        return graph
