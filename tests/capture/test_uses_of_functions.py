"""Analyses, ablation, Jacobians and the regularizer treat activation functions like modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from function_networks import Calls, X, in_place, modes
from probekit.analysis.ablate import ablate
from probekit.analysis.analyze import analyze
from probekit.analysis.jacobian import jacobian_norm
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError
from probekit.metrics.gradient_variability import GradientVariability
from probekit.training.regularizer.regularizer import SelectivityRegularizer

DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(24) % 3)


class Twins(nn.Module):
    """The same network with functions or with modules."""

    def __init__(self, modules: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 3)
        nn.init.normal_(self.head.weight, std=20)
        nn.init.normal_(self.head.bias)
        self.relu = nn.ReLU() if modules else None
        self.silu = nn.SiLU() if modules else None
        self.remember = False

    def body(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.relu(x) if self.relu is not None else functional.relu(x, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.body, x, use_reentrant=False) if self.remember else self.body(x)
        x = self.two(x)
        x = self.silu(x) if self.silu is not None else functional.silu(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture
def twins() -> tuple[nn.Module, nn.Module]:
    first, second = Twins(False), Twins(True)
    second.load_state_dict(first.state_dict())
    return first.eval(), second.eval()


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_analyze_treats_functions_like_modules(twins: tuple[nn.Module, nn.Module]) -> None:
    metrics = ["selectivity", "dimensionality", GradientVariability(method="exact")]
    results = [analyze(net, DATA, metrics=metrics, progress=False) for net in twins]
    for group in ("units", "layers"):
        xr.testing.assert_allclose(
            *(one[group].to_dataset().drop_vars("type", errors="ignore") for one in results)
        )
    probes = [
        analyze(net, DATA, metrics=[GradientVariability(method="probes", probes=4)], progress=False)
        for net in twins
    ]
    xr.testing.assert_allclose(*(one["units"].to_dataset() for one in probes))


def test_the_jacobian_is_the_same_for_functions_and_modules(
    twins: tuple[nn.Module, nn.Module],
) -> None:
    norms = [jacobian_norm(net, DATA, progress=False)["jacobian_norm"] for net in twins]
    xr.testing.assert_allclose(*norms)


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_ablation_applies_to_units_of_functions(twins: tuple[Any, Any]) -> None:
    with torch.no_grad():  # Make predictions differ between images
        shift = twins[0](DATA[0]).mean(0)
        for net in twins:
            net.head.bias -= shift
    curves = [
        ablate(
            net, DATA, analyze(net, DATA, progress=False)["units"]["selectivity"],
            value="mean", random=1, progress=False,
        )
        for net in twins
    ]  # fmt: skip
    xr.testing.assert_equal(curves[0]["accuracy"], curves[1]["accuracy"])
    assert len(set(curves[0]["accuracy"].values.ravel().tolist())) > 1


def into_another(x: Tensor) -> Tensor:
    output = torch.empty_like(x)
    torch.sigmoid(x, out=output)
    return output


def into_itself(x: Tensor) -> Tensor:
    torch.clamp(x, min=0, out=x)
    return x


@pytest.mark.parametrize(
    "function",
    [in_place, functional.relu, lambda x: functional.relu(x, True), into_another, into_itself],
)
def test_a_change_replaces_the_result_of_a_function(function: Any) -> None:
    net = Calls(function).eval()
    with torch.no_grad(), Recorder(net) as recorder:
        net(X)
        layers = recorder.layers
    with (
        torch.no_grad(),
        Recorder(net, layers, change=lambda layer, maps: maps * 0 + 2) as recorder,
    ):
        output = net(X)
    torch.testing.assert_close(output, net.head(torch.full((4, 5), 2.0)))
    assert torch.equal(*recorder.activations.values(), torch.full((4, 5), 2.0))


@pytest.mark.filterwarnings("ignore:class means below zero")
@pytest.mark.parametrize("remember", [False, True])
def test_the_regularizer_gives_functions_and_modules_equal_gradients(
    twins: tuple[Any, Any], remember: bool
) -> None:
    gradients = []
    for net in twins:
        net.remember = remember
        with SelectivityRegularizer(net, -2.0, negative="keep") as penalty:
            for _ in range(2):
                net.zero_grad()
                (functional.cross_entropy(net(DATA[0]), DATA[1]) + penalty(DATA[1])).backward()
                assert modes() == 0
            assert list(penalty.selectivity) == ["relu", "silu"]
        gradients.append([one.grad for one in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_model_in_training_has_no_function_layers(twins: tuple[Any, Any]) -> None:
    with SelectivityRegularizer(twins[0], -2.0, images=DATA[0][:2]) as penalty:
        torch.compile(twins[0], backend="eager")(DATA[0])
        with pytest.raises(
            LayerError, match=r"'relu' was reached .* it is a function, which cannot"
        ):
            penalty(DATA[1])
    torch._dynamo.reset()
