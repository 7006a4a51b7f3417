"""Units clamped to fixed values, compared with networks modified by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from probekit.capture.layers import Layer
from probekit.capture.plan import scout_layers
from probekit.capture.readouts import clamped
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError


def test_the_changed_output_is_passed_on(network: nn.Module) -> None:
    network.eval()
    images = torch.rand(5, 1, 8, 8)
    layers, _ = scout_layers(network, images, ["4"])
    held = torch.tensor([True, False, True, False])
    with clamped({"4": held}, {"4": torch.tensor([0.5, 9.0, 0.0, 9.0])}).open(
        network, layers
    ) as tap:
        found = network(images)
        table = tap(images, torch.arange(5))["4"]
    maps = network[:5](images)
    maps[:, 0], maps[:, 2] = 0.5, 0.0
    assert torch.allclose(found, network[5:](maps), atol=1e-7)
    assert torch.allclose(table, maps.mean((2, 3)), atol=1e-6)


def test_an_earlier_in_place_function_has_no_side_effect(network: nn.Module) -> None:
    network.eval()
    images = torch.rand(5, 1, 8, 8)
    layers, _ = scout_layers(network, images, ["2"])
    held = torch.arange(6) == 3
    with clamped({"2": held}, {}).open(network, layers):
        found = network(images)
    maps = network[:3](images)
    maps[:, 3] = 0
    assert torch.allclose(found, network[3:](maps), atol=1e-7)


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_restored(network: nn.Module, failing: bool) -> None:
    images = torch.rand(5, 1, 8, 8)
    before = network.eval()(images)
    layers, _ = scout_layers(network, images, ["4"])
    try:
        with clamped({"4": torch.ones(4, dtype=torch.bool)}, {}).open(network, layers):
            network(images)
            if failing:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(network(images), before)
    assert not any(child._forward_hooks for child in network.modules())


class _Shared(nn.Module):
    """One ReLU that is called twice, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.relu(self.fc(self.relu(x)))
        return out.mean(1)


def test_only_the_second_call_of_a_token_module_can_be_clamped() -> None:
    torch.manual_seed(0)
    net, x = _Shared().eval(), torch.randn(3, 7, 4)
    layers, _ = scout_layers(net, x, ["relu_1"])
    assert layers[0].unit_axis == 2
    with clamped({"relu_1": torch.tensor([False, True, False, False])}, {}).open(net, layers):
        found = net(x)
    expected = torch.relu(net.fc(torch.relu(x)))
    expected[..., 1] = 0
    assert torch.allclose(found, expected.mean(1), atol=1e-7)


LAYOUTS = [
    (Layer("a", "a", 0, "ReLU", (4, 3, 3), unit_axis=1, units=4), (2, 4, 3, 3)),
    (Layer("a", "a", 0, "ReLU", (3, 3, 4), unit_axis=3, units=4), (2, 3, 3, 4)),
    (Layer("a", "a", 0, "ReLU", (9, 4), unit_axis=2, units=4, windows=5), (10, 9, 4)),
    (Layer("a", "a", 0, "ReLU", (4,), unit_axis=1, units=4, windows=5), (10, 4)),
    (Layer("a", "a", 0, "ReLU", (), unit_axis=1, units=1), (2,)),
    (Layer("a", "a", 0, "ReLU", (), unit_axis=1, units=1, windows=5), (10,)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYOUTS)
def test_every_layout_is_restored(layer: Layer, shape: tuple[int, ...]) -> None:
    output = torch.rand(shape)
    maps = layer.arrange(output)
    assert maps.shape[:2] == (2, layer.units)
    assert torch.equal(layer.restore(maps, output), output)


class _Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)[0]


def test_several_outputs_and_a_different_shape_are_refused() -> None:
    net, x = _Tuple(), torch.randn(2, 3, 4)
    layers, _ = scout_layers(net, x, ["inner"])
    with (
        pytest.raises(LayerError, match="returns tuple, and only an output"),
        clamped({"inner": torch.ones(4, dtype=torch.bool)}, {}).open(net, layers),
    ):
        net(x)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    layers, _ = scout_layers(plain, x[:, 0], ["1"])
    with (
        pytest.raises(LayerError, match="must keep the shape"),
        Recorder(plain, layers, change=lambda layer, maps: maps[:1]),
    ):
        plain(x[:, 0])


def test_units_of_another_model_are_refused(network: nn.Module) -> None:
    layers, _ = scout_layers(network.eval(), torch.rand(2, 1, 8, 8), ["4"])
    with (
        pytest.raises(
            LayerError, match="5 units of layer '4' were to be clamped, and the layer has 4"
        ),
        clamped({"4": torch.ones(5, dtype=torch.bool)}, {}).open(network, layers),
    ):
        network(torch.rand(2, 1, 8, 8))
