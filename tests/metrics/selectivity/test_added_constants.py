"""Added constants change the index but not the function or metrics that ignore constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from probekit.analysis.analyze import analyze
from probekit.errors import LayerError, OptionError
from probekit.metrics.selectivity.added_constants import add_constants
from probekit.models.image_model import ImageModel
from probekit.models.loading import load_model

METRICS = ["selectivity", "eta_squared", "preferred_class_auc", "selectivity_offset_free"]


def test_the_function_is_unchanged_and_the_index_falls(
    network: nn.Module, labeled: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images = labeled[0]
    network.eval()
    constants = {"2": torch.arange(1.0, 7.0), "4": 3.0}
    shifted = add_constants(network, constants, images[:2])
    assert torch.allclose(shifted(images), network(images), atol=1e-5)
    before = analyze(network, [labeled], layers=list(constants), metrics=METRICS)["units"]
    layers = [f"{name}.shifted" for name in constants]
    after = analyze(shifted, [labeled], layers=layers, metrics=METRICS)["units"]
    assert (after["selectivity"].values <= 0.5 * before["selectivity"].values).all()
    for name in METRICS[1:]:
        live = before["selectivity_offset_free"].values > 0.01
        np.testing.assert_allclose(after[name][live], before[name][live], rtol=0.02, atol=0.002)


def test_class_means_move_by_the_constants_of_their_units(
    network: nn.Module, labeled: tuple[torch.Tensor, torch.Tensor]
) -> None:
    network.eval()
    constants = np.array([0.5, 1.0, 2.0, 4.0])
    shifted = add_constants(network, {"4": constants}, labeled[0][:2])
    layers = ["4.original", "4.shifted"]
    means = analyze(shifted, [labeled], layers=layers)["units"]["class_mean"].values
    np.testing.assert_allclose(means[4:] - means[:4], constants[:, None] * np.ones((1, 3)), 1e-4)


def test_the_bias_of_the_next_layer_can_absorb_the_constants() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    constants = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rows = torch.rand(10, 6)
    shifted = add_constants(net, {"1": constants}, rows[:2])
    folded = net[2].bias - net[2].weight @ constants
    by_bias = (net[1](net[0](rows)) + constants) @ net[2].weight.T + folded
    torch.testing.assert_close(by_bias, shifted(rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (12,), ()])
def test_units_on_several_axes_or_on_none_have_constants(shape: tuple[int, ...]) -> None:
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            units = int(np.prod(shape))
            self.first, self.act, self.last = nn.Linear(6, units), nn.ReLU(), nn.Linear(units, 3)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.act(self.first(rows).reshape(len(rows), *shape))
            output: torch.Tensor = self.last(hidden.reshape(len(rows), -1))
            return output

    torch.manual_seed(0)
    net, rows = Reshaped(), torch.rand(5, 6)
    constants = torch.arange(1.0, 1 + np.prod(shape))
    shifted = add_constants(net, {"act": constants}, rows[:2])
    torch.testing.assert_close(shifted(rows), net(rows), atol=1e-5, rtol=1e-5)
    expected = net.act(net.first(rows)) + constants
    outputs: list[torch.Tensor] = []
    handle = shifted.act.shifted.register_forward_hook(lambda *given: outputs.append(given[2]))
    shifted(rows)
    handle.remove()
    torch.testing.assert_close(outputs[0].reshape(5, -1), expected)


def test_a_residual_network_with_padding_keeps_its_function() -> None:
    model = load_model("probekit:resnet20-fashion-mnist")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, *model.input_size, generator=generator)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    shifted = add_constants(model, {"layer1.0.relu2": 1.0, "layer3.2.relu1": 2.0}, images)
    assert isinstance(shifted, ImageModel)
    assert shifted.classes == model.classes
    with torch.no_grad():
        torch.testing.assert_close(shifted(images), model(images), atol=1e-3, rtol=1e-3)
    assert {*model.module.state_dict()} == {*before}
    assert all(torch.equal(model.module.state_dict()[name], before[name]) for name in before)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"4": [1.0, 2.0]}, OptionError, "one finite number or 4"),
    ({"4": float("nan")}, OptionError, "finite"),
    ({"no_such": 1.0}, LayerError, "no_such"),
    ({"*": 1.0}, LayerError, "by name"),
]


@pytest.mark.parametrize(("constants", "kind", "message"), BAD)
def test_invalid_constants_are_refused(
    network: nn.Module, constants: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        add_constants(network.eval(), constants, torch.rand(2, 1, 8, 8))


class Named(nn.Module):
    """Calls its activation by keyword, under the second of its names, and then a function in a part."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act, self.block = nn.Linear(6, 4), nn.ReLU(), Functional()
        self.alias = self.act

    def forward(self, x: torch.Tensor) -> Any:
        return self.block(self.alias(input=self.linear(x)))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("name", ["act", "alias"])
def test_a_module_with_two_names_called_by_keyword_is_shifted_under_both(name: str) -> None:
    torch.manual_seed(0)
    net, rows = Named().eval(), torch.rand(10, 6)
    shifted = add_constants(net, {name: 2.0}, rows[:2])
    seen = []
    shifted.alias.shifted.register_forward_hook(lambda *given: seen.append(given[-1]))
    torch.testing.assert_close(shifted(rows), net(rows))
    torch.testing.assert_close(seen, [torch.relu(net.linear(rows)) + 2])
    assert shifted.act is shifted.alias


def test_constants_are_not_added_to_the_module_that_calls_a_function() -> None:
    with pytest.raises(LayerError, match=r"whose module is called once, not to 'block\.relu'"):
        add_constants(Named(), {"block.relu": 2.0}, torch.rand(2, 6))


@pytest.mark.parametrize("names", [["0", "0.1"], ["0.1", "0"]])
def test_a_layer_inside_another_one_is_refused(names: list[str]) -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(4, 3))
    with pytest.raises(LayerError, match=r"'0.1' is inside '0'"):
        add_constants(net, dict.fromkeys(names, 1.0), torch.rand(2, 6))
