"""Random small networks with known results: values, unit axes, names, and number of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


MAPS = ("convolution", "chunk", "glu")
SEQUENCES = ("sequence", "transformer")


class Step(nn.Module):
    """Weights, an activation function applied in one of many ways, and optionally a second use of the result.

    Maps have units on axis 1. Channels-last maps and tokens have units on the last axis. Sequences have
    tokens on axis 0 and samples on axis 1.
    """

    def __init__(self, kind: str, width: int, to: int, act: Any, name: str, reference: Any) -> None:
        super().__init__()
        self.kind, self.name, self.reference = kind, name, reference
        self.truth: list[tuple[str, Tensor]] | None = None
        wide = 2 * to if kind in ("chunk", "glu") else to
        if kind == "transformer":
            self.weights: Any = nn.TransformerEncoderLayer(width, 1, to, 0, activation=act)
            self.name = "weights." + ("activation" if name == "act" else name)
            return
        self.weights = (
            nn.Conv2d(width, wide, 3, padding=1) if kind in MAPS else nn.Linear(width, to)
        )
        if kind in ("attention", "sequence"):
            self.attention = nn.MultiheadAttention(width, 1, batch_first=kind == "attention")
        self.act = act
        if kind == "glu":
            self.name, self.act, self.reference = "act", nn.GLU(1), partial(functional.glu, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "last":
            x = x.permute(0, 2, 3, 1)
        height = x.shape[2]
        if self.kind in ("tokens", "attention"):
            x = x.flatten(2).transpose(1, 2)
        if self.kind in SEQUENCES:
            x = x.flatten(2).permute(2, 0, 1)
        if self.kind in ("attention", "sequence"):
            x = x + self.attention(x, x, x, need_weights=False)[0]
        if self.kind == "transformer":
            if self.truth is not None:
                layer = self.weights
                hidden = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
                expected = self.reference(layer.linear1(hidden)).double()
                self.truth.append((self.name, expected.mean(0)))
            return self.weights(x).permute(1, 2, 0).unflatten(2, (height, -1))
        x = self.weights(x)
        gate = None
        if self.kind == "chunk":
            x, gate = x.chunk(2, 1)
        if self.truth is not None:
            expected = self.reference(x.clone()).double()
            if self.kind in MAPS:
                mean = expected.flatten(2).mean(2)
            else:
                mean = (
                    expected.mean(0) if self.kind in SEQUENCES else expected.flatten(1, -2).mean(1)
                )
            self.truth.append((self.name, mean))
        x = self.act(x)
        if gate is not None:
            x = x * gate
        if self.kind == "last":
            x = x.permute(0, 3, 1, 2)
        if self.kind in ("tokens", "attention"):
            x = x.transpose(1, 2).unflatten(2, (height, -1))
        if self.kind == "sequence":
            x = x.permute(1, 2, 0).unflatten(2, (height, -1))
        return x + 0.1


class Network(nn.Module):
    """A list of steps, one of which may run twice, and a classifier.

    The images may come as a list, and the logits in a mapping.
    """

    def __init__(
        self,
        steps: list[tuple[str, int, str]],
        shared: bool,
        again: int | None,
        listed: bool,
        named: bool,
    ) -> None:
        super().__init__()
        self.listed, self.named = listed, named
        torch.manual_seed(0)
        width, made = 3, []
        common: dict[str, Any] = {}
        for kind, to, how in steps:
            to = width if again is not None else to
            make, name, reference = ACTIVATIONS[how]
            act = common.setdefault(how, make()) if shared else make()
            made.append(Step(kind, width, to, act, name, reference))
            width = width if kind == "transformer" else to
        self.steps = nn.ModuleList(made)
        self.again = again
        self.head = nn.Linear(width, 4)

    def order(self) -> list[int]:
        order = list(range(len(self.steps)))
        return order if self.again is None else [*order, self.again % len(order)]

    def forward(self, x: Any) -> Any:
        x = torch.stack(x) if self.listed else x
        for number in self.order():
            x = self.steps[number](x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return {"maps": x, "logits": logits} if self.named else logits

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
            st.sampled_from(["last", "tokens", "attention", *MAPS, *SEQUENCES]),
            st.integers(2, 9),
            st.sampled_from(sorted(ACTIVATIONS)),
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.none() | st.integers(0, 4),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    net=NETWORKS,
    batch=st.integers(2, 4),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_a_random_network_is_recorded_correctly(
    net: Network, batch: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    net.eval()
    images = torch.randn(batch, 3, *size).to(memory_format=layout)
    given: Any = [*images] if net.listed else images
    with torch.no_grad():
        truth = net.truth(images)
        if not net.listed:
            table = plan(net, images[:2])
            assert table["layer"].tolist() == list(truth)
            assert table["unit_axis_certain"].all()
        with Recorder(net) as recorder:
            for _ in range(2):
                net(given)
                assert all(layer.certain for layer in recorder.layers)
                found = recorder.activations
                assert list(found) == list(truth)
                for name, expected in truth.items():
                    assert found[name].shape == expected.shape == (batch, expected.shape[1])
                    torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-5)
