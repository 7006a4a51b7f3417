"""Metrics defined by a single function: allowed return values, and how mistakes are reported."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probekit as pk
from probekit.errors import DataError, OptionError
from probekit.metrics import metric as registry
from probekit.metrics.metric import FunctionMetric, configured
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.covariance import Covariance
from probekit.statistics.recorded import Recorded


@pytest.fixture(autouse=True)
def no_metric_stays() -> Iterator[None]:
    known = {*registry._REGISTERED, *registry._built_in()}
    yield
    for name in {*registry._REGISTERED} - known:
        del registry._REGISTERED[name]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def of_layer(net: nn.Module, labeled: Any, metric: Any) -> xr.DataTree:
    return pk.analyze(net, labeled, metrics=metric, progress=False)


def test_a_unit_metric_is_available_by_name_immediately(net: nn.Module, labeled: Any) -> None:
    @pk.unit_metric(needs=pk.ClassMeans)
    def selectivity_margin(class_mean: xr.DataArray) -> xr.DataArray:
        """Gap between the two highest class means."""
        ordered = np.sort(class_mean.transpose("unit", "class").values, axis=1)
        return xr.DataArray(ordered[:, -1] - ordered[:, -2], dims="unit")

    assert "selectivity_margin" in pk.list_metrics()
    result = of_layer(net, labeled, ["selectivity", "selectivity_margin"])
    means = np.sort(result["units"]["class_mean"].values, axis=1)
    expected = means[:, -1] - means[:, -2]
    np.testing.assert_allclose(result["units"]["selectivity_margin"], expected)
    assert result["layers"]["selectivity_margin_mean"].item() == pytest.approx(expected.mean())
    assert selectivity_margin.__doc__ == "Gap between the two highest class means."
    recording = pk.record(net, labeled, progress=False)
    np.testing.assert_allclose(selectivity_margin(recording), expected, rtol=1e-5)


def test_a_layer_metric_may_return_a_number_an_array_or_several(
    net: nn.Module, labeled: Any
) -> None:
    @pk.layer_metric(needs=Covariance)
    def total_variance(covariance: xr.Dataset) -> float:
        return float(covariance["variance"].sum())

    @pk.layer_metric(needs=[ClassMeans, Covariance], name="two.numbers")
    def of_two(class_mean: xr.DataArray, covariance: xr.Dataset) -> xr.Dataset:
        share = class_mean.var("class").sum() / covariance["variance"].sum()
        return xr.Dataset({"share": share, "classes": class_mean.sizes["class"]})

    layers = of_layer(net, labeled, ["total_variance", "two.numbers"])["layers"]
    recorded = pk.record(net, labeled, progress=False)["activation"].values
    assert layers["total_variance"].item() == pytest.approx(recorded.var(0, ddof=1).sum(), rel=1e-5)
    assert 0 < layers["share"].item() < 1
    assert layers["classes"].item() == 3


def test_a_metric_may_need_the_recording(net: nn.Module, labeled: Any) -> None:
    @pk.unit_metric(needs=pk.Recorded)
    def median(recording: xr.Dataset) -> xr.DataArray:
        return recording["activation"].median("sample")

    recording = pk.record(net, labeled, progress=False)
    expected = np.median(recording["activation"], axis=0)
    found = of_layer(net, labeled, median)["units"]["median"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(median(recording), expected)


def test_options_can_be_set_with_partial(net: nn.Module, labeled: Any) -> None:
    @pk.unit_metric(needs=Recorded)
    def quantile(recording: xr.Dataset, q: float = 0.5) -> xr.DataArray:
        return recording["activation"].quantile(q, "sample")

    for metric, q in ((quantile, 0.5), (partial(quantile, q=0.9), 0.9)):
        found = of_layer(net, labeled, metric)["units"]["quantile"]
        recorded = pk.record(net, labeled, progress=False)["activation"]
        np.testing.assert_allclose(found, recorded.quantile(q, "sample"), rtol=1e-6)
    with pytest.raises(OptionError, match="'quantile' has no option 'p'; it has q"):
        configured(partial(quantile, p=1))
    assert configured(len) is None


def test_additional_coordinates_do_not_conflict(net: nn.Module, labeled: Any) -> None:
    @pk.unit_metric(needs=ClassMeans)
    def first_class(class_mean: xr.DataArray) -> xr.DataArray:
        return class_mean.isel({"class": 0})

    @pk.unit_metric(needs=ClassMeans)
    def favorite(class_mean: xr.DataArray) -> xr.DataArray:
        return class_mean["class"][class_mean.argmax("class")]

    units = of_layer(net, labeled, ["selectivity", first_class, favorite])["units"]
    np.testing.assert_array_equal(units["first_class"], units["class_mean"][:, 0])
    alive = ~units["dead"].values
    np.testing.assert_array_equal(units["favorite"][alive], units["preferred_class"][alive])


@pytest.mark.parametrize(
    ("level", "found", "words"),
    [
        ("unit", xr.DataArray(1.0), "must return numbers with the dimension 'unit', not 'm'"),
        ("unit", xr.DataArray(1.0), "for one number per layer use layer_metric"),
        ("unit", xr.Dataset({"a": ("unit", [1.0] * 4), "b": 2.0}), "not 'b'"),
        ("unit", np.ones(4), r"must return xarray, as in .*, not ndarray"),
        ("unit", None, r"must return xarray, as in .*, not NoneType"),
        ("unit", xr.DataArray([1.0, 2.0], dims="unit"), r"as many units .*\(4\), not 2"),
        ("layer", xr.DataArray([1.0] * 4, dims="unit"), "for one number per unit use unit_metric"),
        ("layer", None, "must return a number or xarray, not NoneType"),
        ("layer", np.ones(4), "must return a number or xarray, not ndarray"),
    ],
)
def test_return_values_are_checked(
    net: nn.Module, labeled: Any, level: Any, found: Any, words: str
) -> None:
    metric = FunctionMetric("m", (ClassMeans(),), lambda class_mean: found, level)
    with pytest.raises(OptionError, match=words):
        of_layer(net, labeled, metric)


def test_a_failing_metric_is_named(net: nn.Module, labeled: Any) -> None:
    @pk.unit_metric(needs=ClassMeans)
    def wrong(class_mean: xr.DataArray) -> xr.DataArray:
        return class_mean.max("clas")

    with pytest.raises(
        OptionError, match=r"metric 'wrong' failed with ValueError: .*clas"
    ) as caught:
        of_layer(net, labeled, "wrong")
    assert isinstance(caught.value.__cause__, ValueError)

    @pk.unit_metric(needs=ClassMeans)
    def refuses(class_mean: xr.DataArray) -> xr.DataArray:
        raise DataError("not these data")

    with pytest.raises(DataError, match=r"^not these data$"):
        of_layer(net, labeled, "refuses")


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (42, "42 is not one"),
        ((), "at least one"),
        ([ClassMeans, "x"], "'x' is not one"),
        (dict, "not one"),
    ],
)
def test_needs_must_be_statistics(needs: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        pk.unit_metric(needs=needs)


@pytest.mark.parametrize("name", ["selectivity", "dimensionality", "lifetime_sparsity"])
def test_built_in_names_are_reserved(name: str) -> None:
    with pytest.raises(OptionError, match="is built in"):
        pk.unit_metric(needs=ClassMeans, name=name)(lambda class_mean: class_mean)


@pytest.mark.parametrize("name", ["a/b", "my metric", "<lambda>"])
def test_names_must_be_valid_identifiers(name: str) -> None:
    with pytest.raises(OptionError, match="letters, digits and _"):
        pk.unit_metric(needs=ClassMeans, name=name)(lambda class_mean: class_mean)
