"""Plots of many models show the numbers of the table, model by model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from scipy import stats

from probekit import plot
from probekit.errors import DataError, OptionError


def survey(count: int = 3, **more: Any) -> xr.DataTree:
    """Models with 1, 2, ... layers; the last one failed."""
    random = np.random.default_rng(count)
    grid = np.where(
        np.arange(count) < np.arange(count)[:, None], random.random((count, count)), np.nan
    )
    depth = np.full((count, count), np.nan)
    for row in range(1, count):
        depth[row, :row] = np.linspace(0, 1, row) if row > 1 else 0
    names = np.array([f"net{at}" for at in range(count)], dtype=object)
    accuracy = np.where(np.arange(count) > 0, random.random(count), np.nan)
    models = xr.Dataset(
        {
            "accuracy": ("model", accuracy),
            "selectivity_mean": ("model", np.nanmean(np.c_[grid, np.zeros(count)], 1)),
            "parameters": ("model", 10.0 ** np.arange(count)),
        },
        {"model": names},
    )
    layers = xr.Dataset(
        {"selectivity_mean": (("model", "layer"), grid), "depth": (("model", "layer"), depth)},
        {"model": names, "layer": np.arange(count)},
    )
    return xr.DataTree.from_dict({"/": models.assign(more), "layers": layers})


def test_a_profile_has_a_line_per_model_at_its_own_depths() -> None:
    table = survey(4)
    ax = plot.model_profile(table)
    assert len(ax.lines) == 3
    for number, line in enumerate(ax.lines, start=1):
        layers = table["layers"].isel(model=number, layer=slice(0, number))
        assert line.get_xdata().tolist() == layers["depth"].values.tolist()
        assert line.get_ydata().tolist() == layers["selectivity_mean"].values.tolist()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["net1", "net2", "net3"]


def test_a_scatter_shows_known_models_with_their_rank_correlation() -> None:
    table = survey(6)
    ax = plot.model_scatter(table)
    known = table.to_dataset().isel(model=slice(1, None))
    shown = ax.collections[0].get_offsets()
    assert shown[:, 0].tolist() == known["accuracy"].values.tolist()
    assert shown[:, 1].tolist() == known["selectivity_mean"].values.tolist()
    rho = stats.spearmanr(known["accuracy"], known["selectivity_mean"]).statistic
    assert ax.get_title(loc="left") == f"ρ = {rho:.2f}, 5 models"
    assert plot.model_scatter(table, "parameters").get_xscale() == "log"


@pytest.mark.parametrize(
    ("counts", "scale", "labels"),
    [
        ([1.6e6, 2.0e6, 5.4e6, 1.0e7], "log", {"2M", "5M", "10M"}),
        ([2e6, 2.5e6, 3e6, 3.5e6], "linear", {"2M", "2.5M", "3M", "3.5M"}),
    ],
)
def test_numbers_of_parameters_have_short_labels(
    counts: list[float], scale: str, labels: set[str]
) -> None:
    table = survey(5, parameters=("model", [1e6, *counts]))  # the first model has no accuracy
    ax = plot.model_scatter(table, "parameters", "accuracy")
    assert ax.get_xscale() == scale
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert {tick.label1.get_text() for tick in ticks} == labels
    assert not [place for place in ax.xaxis.get_minorticklocs() if low <= place <= high]


def test_many_models_are_colored_by_accuracy_without_names() -> None:
    table = survey(14)
    ax = plot.model_scatter(table)
    order = np.argsort(table["accuracy"].values[1:])
    colors = [to_hex(one) for one in ax.collections[0].get_facecolors()[order]]
    assert colors == plot.palette(14)[:13]
    assert ax.get_legend() is None
    assert plot.model_profile(table).get_legend() is None


def test_the_similarity_of_layers_is_a_heat_map() -> None:
    values = np.array([[1.0, 0.2, 0.4], [0.1, 0.9, 0.3]])
    names = ["a", "b"], ["x$", "y", "z"]
    table = xr.Dataset(
        {"cka": (("layer", "other_layer"), values)}, {"layer": names[0], "other_layer": names[1]}
    )
    ax = plot.layer_similarity(table)
    assert ax.images[0].get_array().tolist() == values.tolist()
    assert [text.get_text() for text in ax.get_xticklabels()] == names[1]
    assert [text.get_text() for text in ax.get_yticklabels()] == names[0]
    with pytest.raises(OptionError, match=r"output of pk\.cka"):
        plot.layer_similarity(xr.Dataset())


def test_missing_numbers_are_refused() -> None:
    with pytest.raises(
        DataError, match="no number 'dead' over model and layer, it has selectivity"
    ):
        plot.model_profile(survey(), "dead")
    with pytest.raises(DataError, match="no model of the survey has both"):
        plot.model_scatter(survey(3, accuracy=("model", [np.nan] * 3)))
    with pytest.raises(OptionError, match=r"the tree that pk\.survey returns"):
        plot.model_scatter(xr.Dataset())  # type: ignore[arg-type]


def test_the_common_prefix_of_all_names_is_the_heading() -> None:
    ax = plot.model_profile(survey(4))
    assert ax.get_legend().get_title().get_text() == ""  # net0, net1, ... share no whole word
    table = survey(3)
    names = {"model": [f"probekit:net-a{at}" for at in range(3)]}
    table = xr.DataTree.from_dict(
        {
            "/": table.to_dataset().assign_coords(names),
            "layers": table["layers"].to_dataset().assign_coords(names),
        }
    )
    legend = plot.model_scatter(table).get_legend()
    assert legend.get_title().get_text() == "probekit:net-…"
    assert [text.get_text() for text in legend.get_texts()] == ["a1", "a2"]


def test_the_sides_of_a_heat_map_are_named_by_their_models() -> None:
    provenance = {"model": {"name": "resnet18"}, "other": {"type": "Net"}}
    table = xr.Dataset(
        {"cka": (("layer", "other_layer"), [[1.0]])}, {"layer": ["a"], "other_layer": ["b"]}
    )
    ax = plot.layer_similarity(table.assign_attrs(provenance=json.dumps(provenance)))
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("resnet18", "Net")
    assert plot.layer_similarity(table).get_xlabel() == "other layer"


def test_the_order_of_dimensions_does_not_matter() -> None:
    layers = xr.Dataset(
        {
            "depth": (("model", "layer"), [[0.0, 1.0], [0.0, 0.5]]),
            "dead": (("model", "layer"), [[1.0, 2.0], [3.0, 4.0]]),
        },
        {"model": ["a", "b"]},
    )
    lines = plot.model_profile(xr.DataTree.from_dict({"layers": layers.transpose()}), "dead").lines
    assert [line.get_xdata().tolist() for line in lines] == [[0.0, 1.0], [0.0, 0.5]]
    assert [line.get_ydata().tolist() for line in lines] == [[1.0, 2.0], [3.0, 4.0]]
