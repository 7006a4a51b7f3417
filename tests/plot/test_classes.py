"""Tuning curves of a unit, and the map of class means by unit."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from probekit import plot
from probekit.errors import DataError, OptionError


def test_classes_are_sorted_by_decreasing_mean(result: xr.DataTree) -> None:
    ax = plot.unit_tuning(result, "layer2.0.relu", 4)
    units = result["units"].to_dataset()
    means = units["class_mean"].values[16 + 24 + 6 + 4]
    order = np.argsort(-means)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], means[order])
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert names == units["class_name"].values[order].tolist()
    rest = ax.lines[0].get_ydata()
    np.testing.assert_allclose(rest, np.sort(means)[:-1].mean())
    index = units["selectivity"].values[50]
    assert ax.get_title(loc="left") == f"layer2.0.relu, unit 4: SI {index:.2f}"


def test_several_results_use_the_order_of_the_first(
    result: xr.DataTree, other: xr.DataTree
) -> None:
    ax = plot.unit_tuning({"one": result, "two": other}, "relu", 0)
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(2, -1)
    order = np.argsort(-result["units"]["class_mean"].values[0])
    np.testing.assert_allclose(heights[0], result["units"]["class_mean"].values[0][order])
    np.testing.assert_allclose(heights[1], other["units"]["class_mean"].values[0][order])


def test_classes_of_one_name_are_told_apart() -> None:
    units = xr.Dataset(
        {"class_mean": (("unit", "class"), [[1.0, 4.0, 2.0]])},
        {
            "layer": ("unit", ["relu"]),
            "channel": ("unit", [0]),
            "class": [134, 517, 3],
            "class_name": ("class", ["crane", "crane", "ant"]),
        },
    )
    for ax, names in (
        (plot.unit_tuning(units, "relu", 0), ["crane (517)", "ant", "crane (134)"]),
        (plot.class_means(units, "relu"), ["crane (134)", "crane (517)", "ant"]),
    ):
        assert [text.get_text() for text in ax.get_xticklabels()] == names


def test_results_with_different_classes_are_not_compared(result: xr.DataTree) -> None:
    units = result["units"].to_dataset()
    names = [f"other {label}" for label in units["class"].values]
    for other in (
        units.isel({"class": slice(0, 3)}),
        units.assign_coords(class_name=("class", names)),
    ):
        with pytest.raises(DataError, match="different classes"):
            plot.unit_tuning({"one": result, "two": other}, "relu", 0)


def test_a_thousand_classes_are_drawn_as_a_line() -> None:
    units = xr.Dataset(
        {"class_mean": (("unit", "class"), np.random.default_rng(0).random((1, 1000)))},
        {"layer": ("unit", ["relu"]), "channel": ("unit", [0]), "class": np.arange(1000)},
    )
    ax = plot.unit_tuning(units, "relu", 0)
    assert not ax.patches
    assert len(ax.get_xticks()) <= 40
    assert (np.diff(ax.lines[0].get_ydata()) <= 0).all()


def test_units_are_sorted_by_preferred_class_with_dead_ones_last(result: xr.DataTree) -> None:
    image = plot.class_means(result, "layer2.0.relu", scale=False).get_images()[0].get_array()
    means = result["units"]["class_mean"].values[46:86]
    assert image is not None
    assert sorted(map(tuple, image.tolist())) == sorted(map(tuple, means.tolist()))
    assert not np.any(image[-1])
    preferred = np.argmax(image[:-1], axis=1)
    assert (np.diff(preferred) >= 0).all()
    highest = np.max(image[:-1], axis=1)
    rest = (np.sum(image[:-1], axis=1) - highest) / 5
    index = (highest - rest) / (highest + rest)
    for label in range(6):
        assert (np.diff(index[preferred == label]) <= 1e-12).all()


def test_several_maps_are_side_by_side(result: xr.DataTree, other: xr.DataTree) -> None:
    alone = [plot.class_means(one, "relu").get_images()[0].get_array() for one in (result, other)]
    ax = plot.class_means({"one": result, "two": other}, "relu")
    values = np.ma.filled(ax.get_images()[0].get_array(), np.nan)
    assert values.shape == (16, 13)
    np.testing.assert_array_equal(values[:, :6], alone[0])
    np.testing.assert_array_equal(values[:, 7:], alone[1])
    assert np.isnan(values[:, 6]).all()
    assert [text.get_text() for text in ax.texts] == ["one", "two"]
    names = result["units"]["class_name"].values.tolist()
    assert [text.get_text() for text in ax.get_xticklabels()] == names * 2


def test_a_scaled_map_has_a_maximum_of_one_per_unit(result: xr.DataTree) -> None:
    image = plot.class_means(result, "relu").get_images()[0]
    values = image.get_array()
    assert values is not None
    np.testing.assert_allclose(np.max(values, axis=1)[:-1], 1.0)
    assert image.get_cmap().name == "viridis"


def test_means_below_zero_use_a_diverging_colormap(result: xr.DataTree) -> None:
    units = result["units"].to_dataset()
    units["class_mean"] = units["class_mean"] - 0.4
    image = plot.class_means(units, "relu").get_images()[0]
    low, high = image.get_clim()
    assert low == pytest.approx(-high)
    assert image.get_cmap().name == "PuOr_r"


def test_a_map_of_two_thousand_units_and_two_hundred_classes_is_readable() -> None:
    units = xr.Dataset(
        {"class_mean": (("unit", "class"), np.random.default_rng(0).random((2048, 200)))},
        {"layer": ("unit", ["relu"] * 2048), "class": np.arange(200)},
    )
    ax = plot.class_means(units, "relu")
    assert len(ax.get_xticks()) <= 24
    assert "2,048 units" in ax.get_ylabel()


def test_classes_that_a_layer_lacks_are_left_out() -> None:
    def units(layer: str, classes: list[int], means: list[list[float]]) -> xr.Dataset:
        coords = {"layer": ("unit", [layer] * 2), "channel": ("unit", [0, 1]), "class": classes}
        return xr.Dataset({"class_mean": (("unit", "class"), means)}, coords)

    own = units("relu", [0, 2], [[1.0, 3.0], [4.0, 2.0]])
    joined = xr.concat([own, units("relu_1", [1, 2], [[5.0, 6.0]] * 2)], "unit", join="outer")
    drawn = plot.class_means(joined, "relu", scale=False)
    assert drawn.images[0].get_array().tolist() == [[4.0, 2.0], [1.0, 3.0]]
    assert [text.get_text() for text in drawn.get_xticklabels()] == ["0", "2"]
    tuning = plot.unit_tuning(joined, "relu", 1)
    assert [bar.get_height() for bar in tuning.patches] == [4.0, 2.0]
    assert tuning.lines[0].get_ydata() == [2.0, 2.0]
    joined["class_mean"][0, 0] = np.nan
    with pytest.raises(DataError, match="missing or infinite"):
        plot.class_means(joined, "relu")


def test_a_map_of_replicates_is_refused(result: xr.DataTree, other: xr.DataTree) -> None:
    layer = str(result["layers"]["layer"].values[0])
    with pytest.raises(OptionError, match="give each result its own name"):
        plot.class_means({"both": [result, other]}, layer)
