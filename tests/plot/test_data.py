"""Variables are found by name, and missing ones are reported in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probekit as pk
from probekit import plot
from probekit.errors import DataError, LayerError, OptionError, ProbekitError
from probekit.metrics import metric as registry
from probekit.plot.data import layer_values, match_layers, named_results, unit_values


@pytest.fixture
def own_metrics() -> Any:
    """A unit metric and a layer metric of a user, unregistered after the test."""
    pk.list_metrics()  # registers the built-in metrics
    before = dict(registry._REGISTERED)

    @pk.unit_metric(needs=pk.ClassMeans)
    def class_span(class_mean: xr.DataArray) -> xr.DataArray:
        return class_mean.max("class") - class_mean.min("class")

    @pk.layer_metric(needs=pk.Covariance)
    def total_variance(covariance: xr.Dataset) -> float:
        return float(covariance["covariance"].values.trace())

    yield ["class_span", "total_variance"]
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)


def test_user_defined_metrics_are_plotted_by_name(
    own_metrics: list[str], network: nn.Module, labeled: Any
) -> None:
    result = pk.analyze(network, [labeled], metrics=own_metrics, progress=False)
    units, layers = (result[name].to_dataset() for name in ("units", "layers"))
    line = pk.plot.layer_profile(result, "total_variance").lines[0]
    np.testing.assert_array_equal(line.get_ydata(), layers["total_variance"].values)
    line = pk.plot.layer_profile(result, "class_span").lines[0]
    means = [
        units["class_span"].values[units["layer"].values == name].mean()
        for name in layers["layer"].values
    ]
    np.testing.assert_allclose(line.get_ydata(), means, rtol=1e-12)
    axes = pk.plot.unit_distribution(result, "class_span")
    assert axes.get_ylabel() == "class span"
    assert [text.get_text() for text in axes.get_xticklabels()] == layers["layer"].values.tolist()
    torch.manual_seed(0)
    points = pk.plot.unit_scatter(result, "class_span", "class_span").collections[0]
    assert sorted(points.get_offsets()[:, 0]) == sorted(units["class_span"].values.tolist())


def test_a_missing_user_defined_metric_is_named(
    own_metrics: list[str], result: xr.DataTree
) -> None:
    with pytest.raises(DataError, match="ask analyze for the metric 'class_span'"):
        pk.plot.unit_distribution(result, "class_span")


MISTAKES: dict[str, tuple[Any, str]] = {
    "gradients": (
        lambda r: pk.plot.unit_scatter(r.drop_nodes("layers").map_over_datasets(without)),
        "no unit variable 'gradient_norm_cv', it has selectivity, .*'gradient_variability'",
    ),
    "misspelt": (
        lambda r: pk.plot.unit_distribution(r, "selectivty"),
        "no unit variable 'selectivty', .*close matches: selectivity",
    ),
    "intervals": (
        lambda r: pk.plot.layer_profile(r, "selectivity_reliability"),
        "no layer variable .*'selectivity_split_half'",
    ),
    "spectrum": (
        lambda r: pk.plot.eigenspectrum(r["layers"].to_dataset()[["n_units"]]),
        "no layer variable 'eigenvalue', it has n_units; .*'dimensionality'",
    ),
    "robustness": (lambda r: pk.plot.corruption_accuracy(r), "needs the table /robustness"),
    "attacks": (lambda r: pk.plot.attack_accuracy(r), "the result has /units, /layers"),
    "layer": (
        lambda r: pk.plot.unit_distribution(r, layers="layer1.0.rel"),
        "no layer 'layer1.0.rel'; close matches: layer1.0.relu",
    ),
    "glob": (lambda r: pk.plot.layer_profile(r, layers="zz*"), "no layer 'zz"),
    "unit": (lambda r: pk.plot.unit_tuning(r, "relu", 99), "no unit 99; .* from 0 to 15"),
    "heat map layer": (lambda r: pk.plot.class_means(r, "rely"), "no layer 'rely'; close matches"),
    "dimension": (
        lambda r: pk.plot.unit_distribution(r, "corruption_selectivity"),
        r"dimensions corruption, severity; .* at=\{'corruption': 'fog', 'severity': 1\}",
    ),
    "place": (
        lambda r: pk.plot.unit_distribution(
            r, "corruption_selectivity", at={"corruption": "rain", "severity": 1}
        ),
        "has no value at corruption 'rain'; it has fog, contrast",
    ),
    "no such dimension": (
        lambda r: pk.plot.unit_distribution(r, at={"epsilon": 1}),
        "has no dimension 'epsilon'",
    ),
    "compared lines": (
        lambda r: pk.plot.layer_profile({"a": r}, "components"),
        r"choose a coordinate along it, such as at=\{'variance': 0.9\}",
    ),
    "text": (
        lambda r: pk.plot.unit_distribution(
            r["units"].to_dataset().assign(kind=("unit", np.full(146, "a", dtype=object))), "kind"
        ),
        "'kind' has values of type object",
    ),
    "nothing": (lambda r: pk.plot.layer_profile({}), "nothing to draw"),
    "no result": (lambda r: pk.plot.layer_profile([1, 2]), "takes a result, .* not list"),
    "no result in it": (
        lambda r: pk.plot.layer_profile({"a": 3}),
        "'a' must be a result .* not int",
    ),
    "kind": (lambda r: pk.plot.unit_distribution(r, kind="box"), "'violin' or 'ridge', not 'box'"),
    "interval": (lambda r: pk.plot.layer_profile(r, interval="sem"), "interval must be 'auto'"),
    "no confidence": (
        lambda r: pk.plot.layer_profile(r, "participation_ratio", interval="confidence"),
        "no participation_ratio_low and participation_ratio_high",
    ),
    "no quartiles": (
        lambda r: pk.plot.layer_profile(r, "participation_ratio", interval="quartiles"),
        "not a variable of units",
    ),
    "axes": (lambda r: pk.plot.layer_profile(r, ax="here"), "one matplotlib Axes, .* not str"),
    "replicates": (
        lambda r: pk.plot.layer_profile({"a": [r, trimmed(r)]}),
        "replicates under one name must have the same layers",
    ),
    "pooled": (
        lambda r: pk.plot.unit_distribution({"a": [r, trimmed(r)]}),
        "replicates under one name must have the same layers",
    ),
}


def without(table: xr.Dataset) -> xr.Dataset:
    return table.drop_vars("gradient_norm_cv", errors="ignore")


def trimmed(result: xr.DataTree) -> xr.DataTree:
    """The same result without its last layer."""
    units = result["units"].to_dataset()
    last = units["layer"].values[-1]
    return xr.DataTree.from_dict(
        {
            "units": units.isel(unit=np.flatnonzero(units["layer"].values != last)),
            "layers": result["layers"].to_dataset().isel(layer=slice(0, -1)),
        }
    )


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_reported_in_one_sentence(name: str, result: xr.DataTree) -> None:
    from matplotlib import pyplot as plt

    draw, message = MISTAKES[name]
    with pytest.raises(ProbekitError, match=message) as raised:
        draw(result)
    assert "\n" not in str(raised.value)
    assert not plt.get_fignums(), "a figure was left behind"


def test_a_result_its_table_and_its_node_give_the_same_figure(result: xr.DataTree) -> None:
    forms = (result, result["layers"], result["layers"].to_dataset())
    drawn = [pk.plot.layer_profile(form, "n_units").lines[0].get_ydata() for form in forms]
    for one in drawn:
        np.testing.assert_array_equal(one, [16, 24, 6, 40, 60])


def test_numeric_names_are_sorted_alphas(result: xr.DataTree) -> None:
    compared = named_results({1: result, -0.5: result, np.float64(0): result})
    assert compared.alpha
    assert compared.names == ["-0.5", "0", "1"]
    assert not named_results({"1": result}).alpha
    assert not named_results({True: result}).alpha


def test_units_keep_their_layers(result: xr.DataTree) -> None:
    seen = unit_values(result, "selectivity", "layer1*")
    assert seen.layers == ["layer1.0.relu", "layer1.0.relu_1"]
    np.testing.assert_array_equal(
        seen.values[1], result["units"]["selectivity"].values[16 + 24 : 16 + 24 + 6]
    )


def test_other_dimensions_are_selected_by_coordinate(result: xr.DataTree) -> None:
    at = {"corruption": "contrast", "severity": 5}
    seen = unit_values(result, "corruption_selectivity", at=at)
    expected = result["units"]["corruption_selectivity"].values[:, 1, 1]
    np.testing.assert_array_equal(np.concatenate(seen.values), expected)
    name, values = layer_values(result, "components", "relu", {"variance": 0.99})
    assert (name, values.dims, values.item()) == ("components", ("layer",), 6.0)


def test_booleans_become_fractions(result: xr.DataTree) -> None:
    name, values = layer_values(result, "dead")
    assert name == "dead_mean"
    np.testing.assert_allclose(values, [1 / 16, 0, 0, 1 / 40, 0])


def test_layers_are_in_execution_order() -> None:
    names = ["z", "a.1", "a.0"]
    assert match_layers(names, ["a.*", "z"]) == names
    assert match_layers(names, "a.0") == ["a.0"]
    # An exact match takes precedence over a glob interpretation.
    assert match_layers(["f[0]", "f0"], "f[0]") == ["f[0]", "f0"]
    with pytest.raises(LayerError):
        match_layers(names, ["a.0", "b"])
    with pytest.raises(OptionError):
        named_results(None)


def test_labels_of_classes_are_not_averaged(result: xr.DataTree) -> None:
    for draw in (plot.layer_profile, plot.unit_distribution):
        with pytest.raises(DataError, match="'preferred_class' has labels of classes"):
            draw(result, "preferred_class")


@pytest.mark.parametrize(
    "draw",
    [
        lambda layers, units: plot.layer_profile(layers, "n_units"),
        lambda layers, units: plot.unit_distribution(units),
        lambda layers, units: plot.unit_tuning(units, "relu", 0),
        lambda layers, units: plot.class_means(units, "relu"),
    ],
)
def test_concatenated_tables_are_refused(draw: Any) -> None:
    layers = xr.Dataset({"n_units": ("layer", [1, 2])}, {"layer": ["relu", "relu_1"]})
    units = xr.Dataset(
        {"selectivity": ("unit", [0.1, 0.2]), "class_mean": (("unit", "class"), [[1.0, 2.0]] * 2)},
        {"layer": ("unit", ["relu"] * 2), "channel": ("unit", [0, 1]), "class": [0, 1]},
    )
    draw(layers, units)
    twice = xr.concat([layers, 3 * layers], "layer"), xr.concat([units, 3 * units], "unit")
    with pytest.raises(DataError, match=r"relu(, 0)? several times"):
        draw(*twice)
