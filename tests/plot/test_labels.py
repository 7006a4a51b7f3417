"""Names in figures are drawn unchanged, and few enough to be readable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from torch import nn

import probekit as pk
from probekit import plot
from probekit.plot.labels import key, name_axis, plain, shown


def many_layers(count: int) -> xr.Dataset:
    names = [f"features.{at}.block.relu" for at in range(count)]
    return xr.Dataset({"n_units": ("layer", np.arange(count) + 1)}, {"layer": names})


@pytest.mark.parametrize("count", [1, 5, 40, 41, 150, 1000])
def test_many_layers_have_few_labels(count: int) -> None:
    ax = plot.layer_profile(many_layers(count), "n_units")
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert 1 <= len(names) <= 40
    assert len(names) == count or count > 40
    assert names[0] == "features.0.block.relu"
    assert ax.figure.get_size_inches()[0] <= 9


@pytest.mark.parametrize(("number", "most"), [(1, 1), (7, 3), (100, 40), (41, 40)])
def test_labels_are_evenly_spaced_from_the_first(number: int, most: int) -> None:
    which = shown(number, most)
    assert which[0] == 0
    assert len(which) <= most
    assert len(set(np.diff(which))) <= 1
    assert number - which[-1] <= (which[1] if len(which) > 1 else number)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["$\\frac{", "_hidden", "a\nb\tc", "x" * 200, "<b>&", "\x00", "ü$"]
)
def test_hostile_names_are_drawn_literally(name: str) -> None:
    units = xr.Dataset(
        {
            "selectivity": ("unit", np.linspace(0, 1, 9)),
            "class_mean": (("unit", "class"), np.random.default_rng(0).random((9, 2))),
        },
        {"layer": ("unit", [name] * 9), "class": [0, 1], "class_name": ("class", [name, "other"])},
    )
    tree = xr.DataTree.from_dict({"units": units, "layers": xr.Dataset(coords={"layer": [name]})})
    for ax in (
        plot.unit_distribution({name: tree, "b": tree}),
        plot.unit_tuning(tree, name, 3),
        plot.class_means(tree, name),
        plot.unit_scatter({name: tree}, "selectivity", "selectivity"),
    ):
        ax.figure.set_dpi(30)
        ax.figure.canvas.draw()
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == plain(name)


def test_a_shortened_name_keeps_both_ends() -> None:
    assert plain("features.denseblock1." + "x" * 50 + ".relu2", 20) == "features.d…xxx.relu2"
    assert len(plain("y" * 99)) == 32


def test_axis_labels_are_at_their_positions() -> None:
    _, ax = plt.subplots()
    name_axis(ax.xaxis, [f"n{at}" for at in range(10)], most=4)
    assert ax.get_xticks().tolist() == [0, 3, 6, 9]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["n0", "n3", "n6", "n9"]
    key(ax, ax.plot([0, 1], [0, 1]), ["_secret"])
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "_secret"


def test_a_long_name_is_the_axis_label() -> None:
    said = {"long_name": "spikes a second (Hz)"}
    units = xr.Dataset(
        {"rate": ("unit", np.arange(6.0), said), "other": ("unit", np.arange(6.0))},
        {"layer": ("unit", ["relu"] * 3 + ["relu_1"] * 3)},
    )
    layers = xr.Dataset({"rate": ("layer", [1.0, 2.0], said)}, {"layer": ["relu", "relu_1"]})
    sweep = xr.Dataset(
        {
            "rate": ("alpha", [1.0, 2.0], said),
            "other": ("alpha", [1.0, 3.0]),
            "each": (("alpha", "layer"), np.ones((2, 2)), said),
        },
        {"alpha": [0.0, 1.0], "layer": ["relu", "relu_1"]},
    )
    with plt.rc_context(plot.style()):
        drawn = [
            plot.unit_distribution(units, "rate").get_ylabel(),
            plot.unit_distribution(units, "rate", kind="ridge").get_xlabel(),
            plot.unit_scatter(units, "other", "rate").get_ylabel(),
            plot.layer_profile(layers, "rate").get_ylabel(),
            plot.alpha_curve(sweep, "rate").get_ylabel(),
            plot.alpha_profile(sweep, "each").get_ylabel(),
            plot.alpha_trade_off(sweep, "other", "rate").get_ylabel(),
        ]
    assert set(drawn) == {"spikes a second (Hz)"}
    assert plot.alpha_trade_off(sweep, "other", "rate").get_xlabel() == "other"


def test_a_metric_sets_the_axis_label() -> None:
    @pk.unit_metric(needs=pk.ClassMeans)
    def highest(class_mean: xr.DataArray) -> xr.DataArray:
        return class_mean.max("class").assign_attrs(long_name="highest class mean")

    batches = [(torch.rand(4, 3), torch.tensor([0, 1, 0, 1])) for _ in range(2)]
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    result = pk.analyze(model, batches, metrics=[highest], progress=False)
    assert plot.unit_distribution(result, "highest").get_ylabel() == "highest class mean"
    assert plot.layer_profile(result, "highest").get_ylabel() == "mean highest class mean"
