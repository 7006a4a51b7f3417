"""Scatter plots of two variables over units: all points, their correlation, and many units."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from probekit import plot
from probekit.errors import DataError


def table(x: np.ndarray, y: np.ndarray, layers: int = 1) -> xr.Dataset:
    names = np.sort(np.arange(len(x)) % layers).astype(str)
    return xr.Dataset({"x": ("unit", x), "y": ("unit", y)}, {"layer": ("unit", names)})


def test_every_unit_is_a_point(result: xr.DataTree) -> None:
    ax = plot.unit_scatter(result)
    units = result["units"].to_dataset()
    known = ~np.isnan(units["gradient_norm_cv"].values)
    expected = np.stack([units[name].values[known] for name in ("selectivity", "gradient_norm_cv")])
    points = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_array_equal(np.sort(points, axis=0), np.sort(expected.T, axis=0))
    assert {tuple(point) for point in points} == {tuple(point) for point in expected.T}


def test_the_correlation_is_spearmans(result: xr.DataTree) -> None:
    units = result["units"].to_dataset().dropna("unit", subset=["gradient_norm_cv"])
    rho = stats.spearmanr(units["selectivity"], units["gradient_norm_cv"]).statistic
    text = plot.unit_scatter(result).texts[0].get_text()
    assert text == f"ρ = {rho:.2f}, {units.sizes['unit']} units"


def test_ten_thousand_units_stay_readable() -> None:
    random = np.random.default_rng(0)
    ax = plot.unit_scatter(table(random.random(10_000), random.random(10_000), 20), "x", "y")
    points = ax.collections[0]
    assert points.get_rasterized()
    assert points.get_sizes()[0] < 2
    assert points.get_alpha() == 0.25
    assert ax.texts[0].get_text().endswith("10,000 units")


def test_outlying_units_are_marked_at_the_edge() -> None:
    random = np.random.default_rng(1)
    x, y = random.random(500), random.random(500)
    y[7], x[9] = 100.0, -50.0
    ax = plot.unit_scatter(table(x, y), "x", "y")
    assert ax.get_ylim()[1] < 3
    assert ax.get_xlim()[0] > -2
    assert "2 beyond the edge" in ax.texts[0].get_text()
    edges = [np.asarray(one.get_offsets()) for one in ax.collections[1:]]
    assert sorted(map(len, edges)) == [0, 0, 1, 1]
    everything = plot.unit_scatter(table(x, y), "x", "y", clip=False)
    assert everything.get_ylim()[1] > 100
    assert "beyond" not in everything.texts[0].get_text()


@pytest.mark.parametrize("values", [np.ones(5), np.zeros(1), np.array([0.0, 1.0])])
def test_constant_variables_have_no_correlation(values: np.ndarray) -> None:
    text = plot.unit_scatter(table(values, values), "x", "y").texts[0].get_text()
    assert "ρ" not in text


def test_no_unit_with_both_variables_is_an_error() -> None:
    units = table(np.array([np.nan, 1.0]), np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="no unit has both 'x' and 'y'"):
        plot.unit_scatter(units, "x", "y")


def test_a_coordinate_is_selected_for_the_variable_that_has_it(result: xr.DataTree) -> None:
    at = {"corruption": "fog", "severity": 5}
    ax = plot.unit_scatter(result, "selectivity", "corruption_selectivity", at=at)
    points = np.asarray(ax.collections[0].get_offsets())
    alive = points[:, 0] > 0
    np.testing.assert_allclose(points[alive, 1], 0.6 * points[alive, 0])
