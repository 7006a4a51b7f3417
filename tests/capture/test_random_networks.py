"""Random small networks with known results: values, unit axes, names, and number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from probekit.capture.plan import plan
from probekit.capture.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")


class Swish(nn.Module):
    """A user-defined activation function."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def in_place(x: Tensor) -> Tensor:
    x.relu_()
    return x


# Ways to apply an activation function: a factory, the layer name, and the reference function.
ACTIVATIONS: dict[str, tuple[Callable[[], Any], str, Callable[[Tensor], Tensor]]] = {
    "module": (nn.ReLU, "act", torch.relu),
    "module in place": (lambda: nn.ReLU(inplace=True), "act", torch.relu),
    "own": (Swish, "act", functional.silu),
    "F.gelu": (lambda: functional.gelu, "gelu", functional.gelu),
    "F.relu": (lambda: functional.relu, "relu", torch.relu),
    "x.relu_": (lambda: in_place, "relu", torch.relu),
    "x.clamp": (lambda: lambda x: x.clamp(min=0), "clamp", torch.relu),
}


class Step(nn.Module):
    """Weights, an activation function applied in one of many ways, and optionally a second use of the result.

    Maps have units on axis 1. Channels-last maps and tokens have units on the last axis.
    """

    def __init__(self, kind: str, width: int, to: int, act: Any, name: str, reference: Any) -> None:
        super().__init__()
        self.kind, self.name, self.reference = kind, name, reference
        wide = 2 * to if kind == "chunk" else to
        first = kind in ("convolution", "chunk")
        self.weights: nn.Module = (
            nn.Conv2d(width, wide, 3, padding=1) if first else nn.Linear(width, to)
        )
        if kind == "attention":
            self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.act = act
        self.truth: list[tuple[str, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "last":
            x = x.permute(0, 2, 3, 1)
        if self.kind in ("tokens", "attention"):
            height = x.shape[2]
            x = x.flatten(2).transpose(1, 2)
        if self.kind == "attention":
            x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.weights(x)
        gate = None
        if self.kind == "chunk":
            x, gate = x.chunk(2, 1)
        if self.truth is not None:
            expected = self.reference(x.clone()).double()
            first = self.kind in ("convolution", "chunk")
            mean = expected.flatten(2).mean(2) if first else expected.flatten(1, -2).mean(1)
            self.truth.append((self.name, mean))
        x = self.act(x)
        if gate is not None:
            x = x * gate
        if self.kind == "last":
            x = x.permute(0, 3, 1, 2)
        if self.kind in ("tokens", "attention"):
            x = x.transpose(1, 2).unflatten(2, (height, -1))
        return x + 0.1


class Network(nn.Module):
    """A list of steps, one of which may run twice, and a classifier."""

    def __init__(self, steps: list[tuple[str, int, str]], shared: bool, again: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        width, made = 3, []
        common: dict[str, Any] = {}
        for kind, to, how in steps:
            to = width if again is not None else to
            make, name, reference = ACTIVATIONS[how]
            act = common.setdefault(how, make()) if shared else make()
            made.append(Step(kind, width, to, act, name, reference))
            width = to
        self.steps = nn.ModuleList(made)
        self.again = again
        self.head = nn.Linear(width, 4)

    def order(self) -> list[int]:
        order = list(range(len(self.steps)))
        return order if self.again is None else [*order, self.again % len(order)]

    def forward(self, x: Tensor) -> Tensor:
        for number in self.order():
            x = self.steps[number](x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

    def truth(self, x: Tensor) -> dict[str, Tensor]:
        """The pooled activations computed by hand, under their expected names."""
        found: dict[str, Tensor] = {}
        for number in self.order():
            step: Any = self.steps[number]
            step.truth = []
            x = step(x)
            (name, values), step.truth = step.truth[0], None
            name = f"steps.{number}.{name}"
            found[f"{name}_1" if name in found else name] = values
        return found


NETWORKS = st.builds(
    Network,
    st.lists(
        st.tuples(
            st.sampled_from(["convolution", "last", "tokens", "attention", "chunk"]),
            st.integers(2, 9),
            st.sampled_from(sorted(ACTIVATIONS)),
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.none() | st.integers(0, 4),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    net=NETWORKS,
    batch=st.integers(2, 4),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
)
def test_a_random_network_is_recorded_correctly(
    net: Network, batch: int, size: tuple[int, int]
) -> None:
    net.eval()
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        truth = net.truth(images)
        table = plan(net, images[:2])
        assert table["layer"].tolist() == list(truth)
        assert table["unit_axis_certain"].all()
        with Recorder(net) as recorder:
            for _ in range(2):
                net(images)
                found = recorder.activations
                assert list(found) == list(truth)
                for name, expected in truth.items():
                    assert found[name].shape == expected.shape == (batch, expected.shape[1])
                    torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-5)
