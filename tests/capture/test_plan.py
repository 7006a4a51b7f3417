"""The plan lists in advance what would be recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from probekit.capture.plan import plan, scout_layers
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError

NET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4), nn.GELU())


def test_the_plan_lists_what_is_recorded() -> None:
    table = plan(NET, torch.rand(2, 3, 6, 6), ["*"])
    assert table["layer"].tolist() == ["0", "1", "2", "3", "4"]
    assert table["type"].tolist() == ["Conv2d", "ReLU", "Flatten", "Linear", "GELU"]
    assert table["shape"].tolist() == [(8, 4, 4), (8, 4, 4), (128,), (4,), (4,)]
    assert table["unit_axis"].tolist() == [1] * 5
    assert table["units"].tolist() == [8, 8, 128, 4, 4]
    assert table["unit_axis_certain"].all()
    assert table["evidence"].tolist() == ["weights", "weights before", *["only axis"] * 3]
    assert table["bytes_per_sample"].tolist() == [32, 32, 512, 16, 16]


def test_full_maps_need_more_bytes() -> None:
    images = torch.rand(2, 3, 6, 6)
    whole = plan(NET, images, ["0"], spatial="none")["bytes_per_sample"][0]
    with Recorder(NET, ["0"], spatial="none") as recorder:
        NET(images)
    assert whole == recorder.activations["0"].nbytes / 2


def test_calls_of_a_module_are_counted() -> None:
    twice = nn.Module()
    twice.act = nn.ReLU()
    twice.forward = lambda x: twice.act(twice.act(x) - 1).sum(1)  # type: ignore[method-assign]
    table = plan(twice, torch.rand(2, 3))
    assert table["layer"].tolist() == ["act", "act_1"]
    assert table["calls"].tolist() == [2, 2]


def test_planning_does_not_change_modes_gradients_or_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan(net, torch.rand(2, 3, 6, 6))
    assert all(child.training and not child._forward_hooks for child in net.modules())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


class Biased(nn.Module):
    """Has a part that processes its own table, as relative position biases do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Sequential(nn.Linear(1, 3), nn.ReLU())
        self.act = nn.ReLU()

    def forward(self, x: Any) -> Any:
        return self.act(x + self.table(torch.ones(1, 1))) @ torch.ones(3, 1)


@pytest.mark.parametrize("samples", [1, 2])
def test_modules_without_a_batch_axis_are_not_taken_for_layers(samples: int) -> None:
    with pytest.warns(
        UserWarning, match="not recorded: table.1; 'table.1' does not depend on the images"
    ):
        layers, _ = scout_layers(Biased(), torch.rand(samples, 3))
    assert [layer.name for layer in layers] == ["act"]


def test_an_invalid_layer_selection_is_reported() -> None:
    with pytest.raises(LayerError, match="no layer is named 'conv'"):
        plan(NET, torch.rand(2, 3, 6, 6), "conv")


def test_a_model_is_planned_by_its_name() -> None:
    table = plan("probekit:resnet20-fashion-mnist", "fashion-mnist", "layer3")
    assert table[["layer", "units"]].values.tolist() == [["layer3", 64]]
