"""Cumulative ablation compared with networks whose channels are set to zero by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import probekit as pk
from probekit.errors import LayerError, ModelError, OptionError, ProbekitWarning
from probekit.models.image_model import ImageModel


@pytest.fixture
def data(model: ImageModel) -> list[tuple[Tensor, Tensor]]:
    """Images labeled with the intact network's predictions; all three classes occur."""
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    module = model.module.eval()
    with torch.no_grad():
        logits = model(images)
        module[-1].bias -= logits.mean(0)
        labels = (logits - logits.mean(0)).argmax(1)
    module.train()
    assert len(labels.unique()) == 3
    return [(images[:18], labels[:18]), (images[18:], labels[18:])]


def units_of(model: Any, data: Any, **options: Any) -> xr.Dataset:
    return pk.analyze(model, data, progress=False, **options)["units"].to_dataset()


def cut(model: ImageModel, images: Tensor, dead: dict[int, list[int]]) -> Tensor:
    """The logits when given channels are set to zero in the outputs of some modules."""
    x = model.normalize(images)
    for number, module in enumerate(model.module.eval()):
        x = module(x)
        for channel in dead.get(number, []):
            x = x.clone()
            x[:, channel] = 0
    return x


def test_each_point_is_the_accuracy_of_a_network_ablated_by_hand(
    model: ImageModel, data: list[tuple[Tensor, Tensor]]
) -> None:
    units = units_of(model, data)
    order = np.random.default_rng(0).permutation(units.sizes["unit"])
    rank = units["selectivity"].copy(data=-np.argsort(order).astype(float))
    found = pk.ablate(model, data, rank, fractions=(0, 0.2, 0.6, 1), random=0)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    for fraction, accuracy in zip(
        found["fraction"].values, found["accuracy"].values[0], strict=True
    ):
        dead: dict[int, list[int]] = {}
        for unit in order[: round(fraction * len(order))]:
            where = units.isel(unit=unit)
            dead.setdefault(int(str(where["layer"].item())), []).append(int(where["channel"]))
        right = (cut(model, images, dead).argmax(1) == labels).double().mean()
        assert accuracy == pytest.approx(float(right), abs=1e-12)


def test_ablation_can_replace_units_by_their_means(
    model: ImageModel, data: list[tuple[Tensor, Tensor]]
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    units = units_of(model, data, layers=["7"])
    found = pk.ablate(
        model, data, units["selectivity"], ["7"], value="mean", random=0, fractions=(0, 1)
    )
    module = model.module.eval()
    x = module[:8](model.normalize(images)).mean(0, keepdim=True)
    prediction = int(module[8](x).argmax())
    assert found["accuracy"].values[0, 1] == pytest.approx(
        float((labels == prediction).double().mean())
    )


class _Planted(nn.Module):
    """Ten inputs, of which only the first two determine the class."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.relu(images.flatten(1))
        return out[:, :2]


def test_ablating_informative_units_first_costs_most() -> None:
    labels = torch.arange(40) % 2
    images = torch.rand(40, 1, 1, 10, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, :2] = torch.eye(2)[labels]
    units = units_of(_Planted(), [(images, labels)], layers=["relu"])
    orders = {"first": units["selectivity"], "last": -units["selectivity"]}
    found = pk.ablate(_Planted(), [(images, labels)], orders, ["relu"], random=3)
    area = found["area"].to_series()
    assert found["accuracy"].sel(order="first", fraction=0.2).item() == 0.5
    assert found["accuracy"].sel(order="last", fraction=0.8).item() == 1.0
    assert area["first"] < area[["random_0", "random_1", "random_2"]].mean() < area["last"]
    assert area["last"] == pytest.approx(np.trapezoid(found["accuracy"].values[1], dx=0.1))


def test_the_seed_determines_the_order_of_ties(
    model: ImageModel, data: list[tuple[Tensor, Tensor]]
) -> None:
    units = units_of(model, data)
    equal = xr.zeros_like(units["selectivity"]).rename("equal")
    options: dict[str, Any] = {"fractions": (0, 0.3, 0.5, 0.7), "random": 2}
    first, again, other = (
        pk.ablate(model, data, equal, seed=seed, **options) for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert not first["accuracy"].equals(other["accuracy"])


def test_the_model_is_restored(model: ImageModel, data: list[tuple[Tensor, Tensor]]) -> None:
    units = units_of(model, data)
    modes = [child.training for child in model.module.modules()]
    state = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    pk.ablate(model, data, units["selectivity"], fractions=(0, 1), random=1)
    with pytest.raises(OptionError):
        pk.ablate(model, data, units["selectivity"], fractions=(1, 0))
    assert [child.training for child in model.module.modules()] == modes
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in model.module.state_dict().items()
    )
    assert not any(child._forward_hooks for child in model.module.modules())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"fractions": (0.5,)}, "fractions must be two or more numbers that rise from 0 to 1"),
    ({"fractions": (0, 2)}, "fractions must be two or more numbers that rise from 0 to 1"),
    (
        {"fractions": ("none", "half")},
        "fractions must be two or more numbers that rise from 0 to 1",
    ),
    ({"random": -1}, "random must be a non-negative integer"),
    ({"value": "median"}, "value must be 'zero' or 'mean'"),
    ({"by": {}, "random": 0}, "there is no order"),
    ({"by": xr.DataArray([1.0, 2.0], dims="unit", name="mine")}, "coordinates layer and channel"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_an_invalid_option_is_reported(
    model: ImageModel, data: list[tuple[Tensor, Tensor]], options: dict[str, Any], message: str
) -> None:
    given = {"by": units_of(model, data)["selectivity"], **options}
    with pytest.raises(OptionError, match=message):
        pk.ablate(model, data, **given)


def test_units_without_a_value_are_named(
    model: ImageModel, data: list[tuple[Tensor, Tensor]]
) -> None:
    units = units_of(model, data, layers=["4"])
    with pytest.raises(OptionError, match="no value for 11 of 15 units, such as channel 0 of '2'"):
        pk.ablate(model, data, units["selectivity"])


def test_a_model_without_logits_and_a_layer_with_several_outputs() -> None:
    data = [(torch.rand(6, 1, 4, 4), torch.arange(6) % 2)]
    maps = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    with pytest.warns(ProbekitWarning, match="accuracy is left out: the model gives no logits"):
        units = units_of(maps, data, layers=["1"])
    with pytest.raises(ModelError, match=r"logits \(batch, classes\)"):
        pk.ablate(maps, data, units["selectivity"], ["1"])
    with pytest.raises(LayerError):
        pk.ablate(maps, data, units["selectivity"], ["missing"])
