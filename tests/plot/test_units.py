"""Distributions over units: outlines, quartiles, few units, and several results."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from probekit import plot
from probekit.errors import DataError
from probekit.plot.density import density

LAYERS = 5


def test_the_outline_is_the_kernel_density_of_the_units(result: xr.DataTree) -> None:
    values = result["units"]["selectivity"].values[:16]
    grid = np.linspace(values.min(), values.max(), 50)
    spread = min(values.std(ddof=1), stats.iqr(values) / 1.349)
    factor = spread / values.std(ddof=1) * (3 * len(values) / 4) ** (-1 / 5)
    theirs = stats.gaussian_kde(values, factor)(grid)
    np.testing.assert_allclose(density(values, grid), theirs / theirs.max(), rtol=1e-12)


@pytest.mark.parametrize("values", [np.full(20, 0.3), np.zeros(8), np.full(9, 1e9)])
def test_identical_units_are_drawn_as_a_spike(values: np.ndarray) -> None:
    assert density(values, np.linspace(values[0], values[0], 5)).tolist() == [1.0] * 5
    units = xr.Dataset({"v": ("unit", values)}, {"layer": ("unit", ["relu"] * len(values))})
    for kind in ("violin", "ridge"):
        plot.unit_distribution(units, "v", kind=kind).figure.canvas.draw()  # type: ignore[arg-type]


def test_median_and_quartiles_are_marked(result: xr.DataTree) -> None:
    ax = plot.unit_distribution(result)
    last = result["units"]["selectivity"].values[-60:]
    bar, dot = ax.lines[-2:]
    np.testing.assert_allclose(bar.get_ydata(), np.percentile(last, [25, 75]))
    np.testing.assert_allclose(dot.get_ydata(), [np.median(last)])
    assert dot.get_xdata() == pytest.approx([LAYERS - 1])


def test_few_units_are_shown_one_by_one(result: xr.DataTree) -> None:
    ax = plot.unit_distribution(result, layers="layer1.0.relu_1")
    assert not ax.collections
    np.testing.assert_array_equal(
        ax.lines[0].get_ydata(), result["units"]["selectivity"].values[40:46]
    )


def test_units_without_a_value_are_left_out(result: xr.DataTree) -> None:
    ax = plot.unit_distribution(result, "gradient_norm_cv", layers="relu")
    values = result["units"]["gradient_norm_cv"].values[:16]
    assert np.isnan(values).sum() == 1
    assert ax.lines[1].get_ydata() == pytest.approx([np.nanmedian(values)])


def test_a_layer_without_values_is_empty() -> None:
    units = xr.Dataset(
        {"v": ("unit", np.r_[np.full(10, np.nan), np.arange(10.0)])},
        {"layer": ("unit", ["a"] * 10 + ["b"] * 10)},
    )
    for kind in ("violin", "ridge"):
        ax = plot.unit_distribution(units, "v", kind=kind)  # type: ignore[arg-type]
        ax.figure.canvas.draw()
        labels = ax.get_xticklabels() if kind == "violin" else ax.get_yticklabels()
        assert [text.get_text() for text in labels] == ["a", "b"]


def test_several_results_are_side_by_side(result: xr.DataTree, other: xr.DataTree) -> None:
    ax = plot.unit_distribution({"one": result, "two": other}, layers="relu")
    assert len(ax.collections) == 2
    left, right = (paths.get_paths()[0].vertices[:, 0] for paths in ax.collections)
    assert left.max() < right.min()
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]


def test_replicates_are_pooled(result: xr.DataTree, other: xr.DataTree) -> None:
    ax = plot.unit_distribution({"both": [result, other]}, layers="relu")
    both = [one["units"]["selectivity"].values[:16] for one in (result, other)]
    assert ax.lines[1].get_ydata() == pytest.approx([np.median(np.concatenate(both))])


def test_networks_with_different_layers_are_drawn_over_depth(result: xr.DataTree) -> None:
    units = result["units"].to_dataset()
    names = np.array(["x"] * 46 + ["y"] * 100, dtype=object)
    renamed = units.assign_coords(layer=("unit", names), channel=("unit", np.arange(146)))
    ax = plot.unit_distribution({"one": units, "two": renamed})
    assert "relative depth" in ax.get_xlabel()
    with pytest.raises(DataError, match="no common rows"):
        plot.unit_distribution({"one": units, "two": renamed}, kind="ridge")


def test_ten_thousand_units_are_drawn_fast_and_small(result: xr.DataTree) -> None:
    units = xr.Dataset(
        {"v": ("unit", np.random.default_rng(0).random(10_000))},
        {"layer": ("unit", np.repeat([f"l{at}" for at in range(10)], 1000))},
    )
    ax = plot.unit_distribution(units, "v")
    assert sum(len(one.get_paths()[0].vertices) for one in ax.collections) < 10_000


def test_the_density_of_values_between_two_points_is_at_the_nearest_one() -> None:
    values = np.linspace(0.31, 0.3101, 40)
    assert density(values, np.array([0.0, 0.25, 0.5])).tolist() == [0, 1, 0]


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
