"""A CUDA graph is used when possible, and its replays give the results of eager steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probekit.training.run.captured import CapturedGradients, can_capture


@pytest.mark.parametrize(
    ("device", "processes", "precision", "possible"),
    [
        ("cuda", 1, "float32", True),
        ("cuda", 1, "bfloat16", True),
        ("cuda", 1, "float16", False),
        ("cuda", 2, "float32", False),
        ("cpu", 1, "float32", False),
    ],
)
def test_a_graph_is_used_when_possible(
    device: str, processes: int, precision: str, possible: bool
) -> None:
    assert can_capture(torch.device(device), processes, precision) is possible


class Graph:
    """An emulation of a CUDA graph on the CPU: a replay repeats the captured work in the captured memory."""

    def __init__(self) -> None:
        self.work: Callable[[], tuple[Tensor, ...]]
        self.returned: tuple[Tensor, ...] | None = None

    def replay(self) -> None:
        assert self.returned is not None
        for old, new in zip(self.returned, self.work(), strict=True):
            old.copy_(new)


class Stream:
    def wait_stream(self, other: Any) -> None:
        pass


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def setter(module: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def set_gradients(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = module(images)
        loss = functional.cross_entropy(logits, labels)
        module.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), (logits.argmax(1) == labels).sum()

    return set_gradients


def test_replays_set_the_gradients_and_buffers_of_eager_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, plain = network(), network()
    inner = setter(module)
    graphs: list[Graph] = []

    @contextmanager
    def capturing(graph: Graph) -> Iterator[None]:
        graphs.append(graph)
        yield

    def set_gradients(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = inner(images, labels)
        if graphs:
            graphs[0].work, graphs[0].returned = lambda: inner(images, labels), found
        return found

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    captured, eager = CapturedGradients(set_gradients, module), setter(plain)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(8, 3, generator=generator)
        labels = torch.randint(0, 2, (8,), generator=generator)
        loss, hits = captured(images, labels)
        expected = eager(images, labels)
        assert loss.item() == pytest.approx(expected[0].item())
        assert hits.item() == expected[1].item()
        for one, other in zip(module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        torch.testing.assert_close(list(module.buffers()), list(plain.buffers()))
    assert len(graphs) == 1
