"""What counts as a layer, how layers are selected, and which axis holds their units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import probekit as pk
from probekit.capture.calls import Call
from probekit.capture.layers import Layer, is_activation_function, site_names, unwrap
from probekit.capture.selection import Selection
from probekit.capture.units import axis_of_type
from probekit.errors import LayerError


def net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Linear(4, 2), nn.Tanh())
    )


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["0.1", "1.1"]),
        ("0.1", ["0.1"]),
        (["0.1", "1.0"], ["0.1", "1.0"]),
        ("*.0", ["0.0", "1.0"]),
        ("?.1", ["0.1", "1.1"]),
        (nn.Linear, ["1.0"]),
        ([nn.Linear, "0"], ["0", "1.0"]),
        (lambda name, module: name.startswith("1."), ["1.0", "1.1"]),
        (["!0.*"], ["1.1"]),
        (["*", "!*.0", "!1"], ["0", "0.1", "1.1"]),
    ],
)
def test_a_selection_matches_these_modules(layers: Any, expected: list[str]) -> None:
    module = net()
    selection = Selection(module, layers)
    wanted = [
        name
        for name, child in module.named_modules()
        if name
        and selection.wants(
            Call(name, name, name, name, 0, called=child), is_activation_function(child)
        )
    ]
    assert wanted == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("0.7", "no layer is named '0.7'; close matches: 0"),
        ("", "no layer is named ''"),
        ("features.*", r"no layer matches 'features.\*'; known: 0, 0.0"),
        (nn.GELU, "no layer matches GELU; the model has modules of the types Conv2d, Linear"),
        ([], "layers is empty"),
    ],
)
def test_an_invalid_selection_is_reported(layers: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        Selection(net(), layers)


def test_call_names_are_unique_for_any_module_names() -> None:
    taken = {"a", "a_1", "a_1_1", "a_2"}
    named = [
        name
        for module in sorted(taken)
        for name, _ in zip(site_names(module, taken), range(5), strict=False)
    ]
    assert len(named) == len(set(named)) == 20


@pytest.mark.parametrize(
    ("module", "expected"),
    [(nn.ReLU(), True), (nn.PReLU(), True), (nn.GELU(), True), (nn.Softmax(1), False),
     (nn.MultiheadAttention(2, 1), False), (nn.Conv2d(1, 1, 1), False)],
)  # fmt: skip
def test_activation_functions_are_recognized(module: nn.Module, expected: bool) -> None:
    assert is_activation_function(module) is expected


@pytest.mark.parametrize(
    ("module", "ndim", "axis"),
    [
        (nn.Conv2d(1, 1, 1), 4, 1),
        (nn.ConvTranspose1d(1, 1, 1), 3, 1),
        (nn.BatchNorm2d(1), 4, 1),
        (nn.GroupNorm(1, 1), 4, 1),
        (nn.AdaptiveAvgPool2d(1), 4, None),
        (nn.Linear(1, 1), 2, 1),
        (nn.Linear(1, 1), 3, 2),
        (nn.Linear(1, 1), 5, 4),
        (nn.LayerNorm(1), 4, 3),
        (nn.RMSNorm(1), 3, 2),
        (nn.LayerNorm((1, 1)), 4, None),
        (nn.LSTM(1, 1), 3, 2),
        (nn.ReLU(), 4, None),
        (nn.Dropout(), 3, None),
        (nn.ReLU(), 2, 1),
    ],
)
def test_module_types_determine_the_unit_axis(
    module: nn.Module, ndim: int, axis: int | None
) -> None:
    assert axis_of_type(module, (1,) * ndim) == axis


@pytest.mark.parametrize(
    ("shape", "axis", "windows", "arranged"),
    [
        ((), 1, 1, (6, 1)),
        ((4,), 1, 1, (6, 4)),
        ((4,), 1, 3, (2, 4, 3)),
        ((4, 5, 7), 1, 1, (6, 4, 5, 7)),
        ((5, 7, 4), 3, 1, (6, 4, 5, 7)),
        ((5, 4), 2, 3, (2, 4, 3, 5)),
    ],
)
def test_outputs_are_arranged_with_units_on_axis_1(
    shape: tuple[int, ...], axis: int, windows: int, arranged: tuple[int, ...]
) -> None:
    units = arranged[1]
    layer = Layer("a", "a", 0, "A", shape, axis, units, windows)
    assert layer.arrange(torch.rand(6, *shape)).shape == arranged
    assert layer.positions == arranged[2:]


def test_unwrapping_a_plain_module_returns_it() -> None:
    module = net()
    assert unwrap(module) is module


def test_a_module_chooses_itself_under_all_its_names() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu)
    found = pk.plan(network, torch.rand(2, 3, 8, 8), [network[2], relu])
    assert found["layer"].tolist() == ["1", "2", "3"]
    with pytest.raises(LayerError, match="no layer matches Conv2d"):
        pk.plan(network, torch.rand(2, 3, 8, 8), nn.Conv2d(3, 4, 3))


def test_other_objects_are_not_taken_for_layers() -> None:
    with pytest.raises(LayerError, match=r"a layer must be a name, .* not Tensor"):
        pk.analyze(net(), (torch.rand(4, 3, 8, 8), [0, 1, 0, 1]), torch.zeros(4))
