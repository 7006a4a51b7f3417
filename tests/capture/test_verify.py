"""Verification detects errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probekit.capture import phase
from probekit.capture.layers import Layer
from probekit.capture.plan import plan, scout_layers
from probekit.capture.verify import verify_layers

X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3)
        self.act = nn.GELU()
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(functional.relu(self.first(x)).clamp_(0, 6)))
        return self.head(self.act(x).mean((2, 3))).sigmoid()


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def test_a_plan_can_be_verified(net: nn.Module) -> None:
    table = plan(net, X, verify=True)
    assert table["layer"].tolist() == ["relu", "clamp", "act", "act_1"]
    assert table["values"].all()
    assert table["complete"].all()
    assert table["axis"].tolist() == ["image size"] * 4
    assert table.attrs["image_sizes"] == [(12, 12), (44, 76)]
    assert table.attrs["missing"] == []
    assert table.attrs["classifier"] == "sigmoid"
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in net.modules())


def test_an_exported_model_can_be_verified(net: nn.Module) -> None:
    samples = torch.export.Dim("samples", min=2)
    exported = torch.export.export(net, (X,), dynamic_shapes=({0: samples},)).module()
    table = plan(exported, X, verify=True)
    assert table["layer"].tolist() == ["relu", "clamp", "gelu", "gelu_1"]
    assert table["values"].all()
    assert table["complete"].all()


@pytest.mark.parametrize("layers", [None, ["*"], ["act*"], nn.Conv2d])
def test_any_selection_can_be_verified(net: nn.Module, layers: Any) -> None:
    table = plan(net, X[:1], layers, verify=True)
    assert table["values"].all()
    assert table["complete"].all()


def found(net: nn.Module) -> list[Layer]:
    return scout_layers(net, X)[0]


def judged(net: nn.Module, layers: list[Layer]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return verify_layers(net, X, layers, None)


def test_values_of_another_layer_are_detected(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = found(net)
    from probekit.capture import capturing

    usual = capturing.Capturing._record

    def shifted(self: Any, module: str, function: str, output: Any) -> Any:
        return usual(self, module, function, output + 1e-3 if function else output)

    monkeypatch.setattr(capturing.Capturing, "_record", shifted)
    report, _ = judged(net, layers)
    assert [row["values"] for row in report] == [False, False, True, True]


@pytest.mark.filterwarnings("ignore:layer 'act:probekit.errors.ProbekitWarning")
def test_a_missing_call_makes_a_layer_incomplete(net: nn.Module) -> None:
    layers = [replace(layer, calls=1) for layer in found(net)]
    report, _ = judged(net, layers)
    assert [row["complete"] for row in report] == [True, True, False, False]


def test_an_axis_that_grows_with_the_image_is_uncertain(net: nn.Module) -> None:
    layers = [replace(layer, unit_axis=2, units=layer.shape[1]) for layer in found(net)]
    report, _ = judged(net, layers)
    assert all(row["axis"].startswith("uncertain") for row in report)


def test_layers_that_are_not_recorded_are_listed_as_missing(net: nn.Module) -> None:
    layers = found(net)
    _, about = judged(net, [layers[2]])
    assert about["missing"] == ["relu", "clamp", "act"]


def test_a_model_with_a_fixed_image_size_is_verified_at_that_size() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(500, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    table = plan(net, X, verify=True)
    assert table["values"].all()
    assert table.attrs["image_sizes"] == [(12, 12)]
    assert table["axis"].tolist()[1] == "only axis"


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.fc, self.act = nn.Embedding(9, 4), nn.Linear(4, 6), nn.GELU()
        self.head = nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.act(self.fc(self.embed(input_ids))).mean(1))


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_named_inputs_with_padding_are_verified(
    padded: bool, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()} if padded else ids
    if wrong:
        monkeypatch.setattr(phase, "masked_mean", lambda maps, mask: maps.mean(2))
    table = plan(Tokens().eval(), inputs, verify=True)
    assert table["layer"].tolist() == ["act"]
    assert table["values"].tolist() == [not (wrong and padded)]
