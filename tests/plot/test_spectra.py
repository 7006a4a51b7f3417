"""Eigenvalue spectra of results and recordings."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from probekit import plot
from probekit.errors import DataError


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
