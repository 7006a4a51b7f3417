"""Values by layer: intervals, replicates, and different networks."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes

from probekit import plot
from probekit.errors import DataError
from probekit.plot.series import places, union


def ends(ax: Axes, which: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of a band, by layer."""
    vertices = ax.collections[which].get_paths()[0].vertices
    at = np.round(vertices[:, 0]).astype(int)
    rows = range(at.min(), at.max() + 1)
    low = np.array([vertices[at == row, 1].min() for row in rows])
    return low, np.array([vertices[at == row, 1].max() for row in rows])


def test_the_line_is_the_variable_by_layer(result: xr.DataTree) -> None:
    ax = plot.layer_profile(result)
    np.testing.assert_array_equal(
        ax.lines[0].get_ydata(), result["layers"]["selectivity_mean"].values
    )
    assert ax.get_ylabel() == "selectivity mean"  # made by hand, without attributes
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert names == result["layers"]["layer"].values.tolist()


def test_the_band_is_the_interquartile_range_of_the_units(result: xr.DataTree) -> None:
    units = result["units"].to_dataset()
    low, high = ends(plot.layer_profile(result, interval="quartiles"))
    for at, layer in enumerate(result["layers"]["layer"].values):
        values = units["selectivity"].values[units["layer"].values == layer]
        np.testing.assert_allclose([low[at], high[at]], np.percentile(values, [25, 75]))


def test_the_bars_are_the_confidence_interval(result: xr.DataTree) -> None:
    ax = plot.layer_profile(result, interval="confidence")
    layers = result["layers"].to_dataset()
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, 0, 1], layers["selectivity_mean_low"])
    np.testing.assert_allclose(segments[:, 1, 1], layers["selectivity_mean_high"])
    assert "confidence" in ax.get_title(loc="left")


def test_the_interval_is_optional(result: xr.DataTree) -> None:
    assert not plot.layer_profile(result, interval="none").collections


def test_a_unit_variable_is_averaged_by_layer(result: xr.DataTree) -> None:
    ax = plot.layer_profile(result, "gradient_norm_cv", layers="relu")
    expected = result["layers"]["gradient_norm_cv_mean"].values[0]
    assert ax.lines[0].get_ydata() == pytest.approx([expected])
    tree = xr.DataTree.from_dict(
        {
            "units": result["units"].to_dataset(),
            "layers": result["layers"].to_dataset().drop_vars("gradient_norm_cv_mean"),
        }
    )
    ax = plot.layer_profile(tree, "gradient_norm_cv", layers="relu")
    values = result["units"]["gradient_norm_cv"].values[:16]
    assert ax.lines[0].get_ydata() == pytest.approx([np.nanmean(values)])


def test_a_part_of_the_units_has_its_own_mean(result: xr.DataTree) -> None:
    part = result.isel(unit=[0, 3, 5, 17])
    values, layers = part["units"]["selectivity"].values, part["units"]["layer"].values.tolist()
    assert layers == ["relu"] * 3 + [layers[3]]
    for name in ("selectivity", "selectivity_mean"):
        ax = plot.layer_profile(part, name)
        assert ax.lines[0].get_ydata() == pytest.approx([values[:3].mean(), values[3]])
        assert "confidence" not in ax.get_title()
    ax = plot.layer_profile(part, "n_units")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result["layers"]["n_units"].values)
    with pytest.raises(DataError, match="no selectivity_mean_low"):
        plot.layer_profile(part, interval="confidence")


def test_an_additional_dimension_gives_one_line_per_value(result: xr.DataTree) -> None:
    ax = plot.layer_profile(result, "components")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0.9", "0.99"]
    np.testing.assert_array_equal(
        [line.get_ydata() for line in ax.lines], result["layers"]["components"].values.T
    )


def test_replicates_have_a_mean_and_a_band(result: xr.DataTree, other: xr.DataTree) -> None:
    ax = plot.layer_profile({0.0: [result, other], -1.0: [other]})
    means = [one["layers"]["selectivity_mean"].values for one in (result, other)]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), means[1])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), np.mean(means, axis=0))
    low, high = ends(ax)
    np.testing.assert_allclose(low, np.min(means, axis=0))
    np.testing.assert_allclose(high, np.max(means, axis=0))
    assert ax.lines[1].get_color() == "#101010"


def test_different_networks_are_drawn_over_depth(result: xr.DataTree) -> None:
    small = xr.Dataset({"n_units": ("layer", [3, 4, 5])}, {"layer": ["a", "b", "c"]})
    ax = plot.layer_profile({"one": result, "two": small}, "n_units")
    np.testing.assert_allclose(ax.lines[1].get_xdata(), [0, 0.5, 1])
    assert "relative depth" in ax.get_xlabel()


def test_selected_layers_of_one_network_keep_their_positions(result: xr.DataTree) -> None:
    some = result["layers"].to_dataset().isel(layer=[0, 3])
    ax = plot.layer_profile({"all": result, "some": some}, "n_units")
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [0, 3])


@pytest.mark.parametrize(
    ("layers", "joint"),
    [
        ([["a", "b"], ["a", "b"]], ["a", "b"]),
        ([["b"], ["a", "b", "c"]], ["a", "b", "c"]),
        ([["a", "b"], ["b", "a"]], None),
        ([["a"], ["b"]], None),
    ],
)
def test_layers_of_one_network_keep_one_order(
    layers: list[list[str]], joint: list[str] | None
) -> None:
    assert union(layers) == joint
    assert places(layers[0], joint)[0] == (joint.index(layers[0][0]) if joint else 0)


def test_gradient_cv_shows_both_kinds(result: xr.DataTree) -> None:
    ax = plot.gradient_cv(result)
    layers = result["layers"].to_dataset()
    for line, name in zip(
        ax.lines, ("gradient_norm_cv_mean", "gradient_norm_cv_across_units"), strict=True
    ):
        np.testing.assert_array_equal(line.get_ydata(), layers[name].values)
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]


def test_layers_without_measured_gradients_are_left_out(result: xr.DataTree) -> None:
    layers = result["layers"].to_dataset()
    for name in ("gradient_norm_cv_mean", "gradient_norm_cv_across_units"):
        layers[name] = layers[name].where(layers["layer"] != "relu")
    ax = plot.gradient_cv(layers)
    assert "relu" not in [text.get_text() for text in ax.get_xticklabels()]
    ax = plot.gradient_cv({"one": layers, "two": result})
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["one", "two", "over samples", "over units"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3, 4])


def test_the_band_of_gradients_lies_at_the_layers_of_its_line(result: xr.DataTree) -> None:
    tree = result.copy(deep=True)
    layers = tree["layers"].to_dataset()
    known = layers["layer"] != layers["layer"][0]
    tree["layers"] = xr.DataTree(
        layers.assign(gradient_norm_cv_mean=layers["gradient_norm_cv_mean"].where(known))
    )
    ax = plot.gradient_cv(tree)
    (band,) = ax.collections[-1].get_paths()
    expected = np.arange(1, len(layers["layer"]))
    np.testing.assert_array_equal(np.unique(band.vertices[:, 0]), expected)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), expected)


def test_a_curve_is_the_spectrum_divided_by_its_largest_value(result: xr.DataTree) -> None:
    ax = plot.eigenspectrum(result, layers="relu")
    curve, mark = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), np.arange(1, 33) ** -2.0)
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(1, 33))
    eigenvalues = 5 * np.arange(1, 33) ** -2.0
    ratio = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert mark.get_xdata() == pytest.approx([ratio])
    # On logarithmic axes, the curve of a power law is straight between components.
    assert mark.get_ydata() == pytest.approx([ratio**-2.0])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_zero_eigenvalues_are_left_out(result: xr.DataTree) -> None:
    layers = result["layers"].to_dataset()
    layers["eigenvalue"] = layers["eigenvalue"].where(layers["component"] < 10, 0.0)
    curve = plot.eigenspectrum(layers, layers="relu").lines[0]
    assert len(curve.get_xdata()) == 10


def test_layers_without_variance_are_refused(result: xr.DataTree) -> None:
    layers = result["layers"].to_dataset()
    layers["eigenvalue"] = layers["eigenvalue"] * 0
    with pytest.raises(DataError, match="nothing varies"):
        plot.eigenspectrum(layers)


def test_a_recording_is_analyzed_first() -> None:
    activation = np.random.default_rng(0).standard_normal((50, 7)) * np.arange(1, 8)
    recording = xr.Dataset(
        {"activation": (("sample", "unit"), activation), "label": ("sample", np.arange(50) % 2)},
        coords={"layer": ("unit", ["b"] * 3 + ["a"] * 4)},
    )
    ax = plot.eigenspectrum(recording)
    for line, columns in zip(ax.lines[::2], (slice(0, 3), slice(3, 7)), strict=True):
        values = np.linalg.eigvalsh(np.cov(activation[:, columns].T))[::-1]
        np.testing.assert_allclose(line.get_ydata(), values / values[0], rtol=1e-8)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["b", "a"]


def test_several_results_are_compared(result: xr.DataTree, other: xr.DataTree) -> None:
    ax = plot.eigenspectrum({-1.0: result, 0.0: other}, layers="layer2.0.relu")
    assert len(ax.lines) == 4
    assert ax.lines[2].get_color() == "#101010"


def test_eigenvalues_in_any_order_are_divided_by_the_largest() -> None:
    layers = xr.Dataset(
        {
            "eigenvalue": (("component", "layer"), [[1.0], [2.0], [8.0]]),
            "participation_ratio": ("layer", [121 / 69]),
        },
        {"layer": ["relu"]},
    )
    assert plot.eigenspectrum(layers).lines[0].get_ydata().tolist() == [1.0, 0.25, 0.125]
