"""Sweeps over alpha."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from probekit import plot
from probekit.errors import DataError, LayerError, OptionError, ProbekitWarning
from probekit.plot.series import alpha_colors


def test_a_variable_over_alpha_is_the_mean_over_seeds(swept: xr.Dataset) -> None:
    ax = plot.alpha_curve(swept)
    mean = swept["test_accuracy"].mean("seed")
    np.testing.assert_allclose(ax.collections[1].get_offsets(), np.c_[swept["alpha"], mean])
    assert ax.lines[0].get_ydata() == pytest.approx([float(mean.sel(alpha=0))] * 2)
    assert ax.get_xscale() == "symlog"
    low, high = np.array(ax.collections[0].get_segments())[:, :, 1].T
    values = swept["test_accuracy"].values
    assert (low >= values.min(1)).all()
    assert (high <= values.max(1)).all()
    assert (low < mean).all()
    assert (high > mean).all()


def test_ticks_of_many_alphas_do_not_overlap(swept: xr.Dataset) -> None:
    ax = plot.alpha_curve(swept)
    ticks = ax.get_xticks()
    assert {-2, 0, 2} <= set(ticks)
    at = ax.transAxes.inverted().transform(ax.transData.transform(np.c_[ticks, 0 * ticks]))[:, 0]
    assert np.diff(at).min() > 0.08
    ax.figure.canvas.draw()
    assert ax.get_xticklabels()[0].get_text() == "−2"


def test_close_alphas_use_a_linear_axis(swept: xr.Dataset) -> None:
    ax = plot.alpha_curve(swept.sel(alpha=[-1, 0, 1]))
    assert ax.get_xscale() == "linear"


def test_two_variables_are_connected_in_the_order_of_alpha(swept: xr.Dataset) -> None:
    ax = plot.alpha_trade_off(swept.isel(alpha=[4, 0, 9]))
    means = swept.drop_vars("failure").mean("seed").isel(alpha=[0, 4, 9])
    np.testing.assert_allclose(ax.lines[0].get_xdata(), means["selectivity_mean"])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), means["test_accuracy"])
    runs = [one for one in ax.collections if len(one.get_offsets()) == 4]
    assert len(runs) == 3


def test_alphas_without_one_of_two_variables_are_left_out(swept: xr.Dataset) -> None:
    both = swept.drop_vars("failure").isel(alpha=[2, 4, 6])
    both["test_accuracy"][0] = np.nan
    both["selectivity_mean"][2] = np.nan
    ax = plot.alpha_trade_off(both)
    means = both.mean("seed").isel(alpha=[1])
    np.testing.assert_allclose(ax.lines[0].get_xdata(), means["selectivity_mean"])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), means["test_accuracy"])
    both["selectivity_mean"][1] = np.nan
    with pytest.raises(DataError, match="no run of the sweep has both"):
        plot.alpha_trade_off(both)


def test_layers_have_one_line_per_alpha(swept: xr.Dataset) -> None:
    ax = plot.alpha_profile(swept, layers="layer1*")
    expected = swept["selectivity"].mean("seed").values[:, 1:3]
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], expected)
    assert [line.get_color() for line in ax.lines] == alpha_colors(swept["alpha"].values.tolist())


def test_missing_runs_are_left_out(swept: xr.Dataset) -> None:
    gaps = swept.drop_vars("failure")
    gaps["test_accuracy"][0, :] = np.nan
    gaps["test_accuracy"][1, 1:] = np.nan
    with pytest.warns(ProbekitWarning, match=r"1 of 10 means .* \(down to 1\) .* others \(4\)"):
        ax = plot.alpha_curve(gaps)
    points = np.asarray(ax.collections[1].get_offsets())
    assert len(points) == 10
    assert points[0].tolist() == [-1.0, float(gaps["test_accuracy"][1, 0])]


def test_mistakes_are_reported(swept: xr.Dataset) -> None:
    with pytest.raises(DataError, match="no number 'acc' over alpha, it has test_accuracy"):
        plot.alpha_curve(swept, "acc")
    with pytest.raises(DataError, match="no number 'failure' over alpha"):
        plot.alpha_curve(swept, "failure")
    with pytest.raises(DataError, match="'test_accuracy' over alpha and layer, it has selectivity"):
        plot.alpha_profile(swept, "test_accuracy")
    with pytest.raises(OptionError, match=r"sweep must be the dataset that .* returns, not dict"):
        plot.alpha_curve({})  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="no layer 'relux'"):
        plot.alpha_profile(swept, layers="relux")
    with pytest.raises(DataError, match="no run of the sweep"):
        plot.alpha_curve(swept.assign(test_accuracy=swept["test_accuracy"] * np.nan))


def test_missing_counts_of_older_files_are_left_out() -> None:
    counts = np.arange(8).reshape(2, 4)
    counts[1, 2] = -1
    table = xr.Dataset(
        {"best_epoch": (("alpha", "seed"), counts)},
        {"alpha": [-1.0, 0.0], "seed": [0, 1, 2, 3]},
    )
    with pytest.warns(ProbekitWarning, match="1 of 2 means are over fewer replicates"):
        ax = plot.alpha_curve(table, "best_epoch")
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [1.5, (4 + 5 + 7) / 3])
