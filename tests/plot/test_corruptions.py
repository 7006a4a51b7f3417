"""Accuracy by type and severity of corruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import probekit as pk
from probekit import plot
from probekit.errors import DataError


def test_the_map_shows_each_accuracy_in_percent_and_the_mean(robust: xr.DataTree) -> None:
    ax = plot.corruption_accuracy(robust)
    accuracy = robust["robustness"]["accuracy"].values
    shown = [int(text.get_text()) for text in ax.texts]
    expected = np.vstack([accuracy, accuracy.mean(0)])
    assert shown == [int(f"{100 * value:.0f}") for value in expected.ravel()]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["gaussian noise", "fog", "contrast", "pixelate", "", "mean"]


def test_a_result_may_be_given_as_a_file(robust: xr.DataTree, tmp_path: Path) -> None:
    file = pk.save_result(robust, tmp_path / "robust.nc")
    shown = [
        [text.get_text() for text in plot.corruption_accuracy(one).texts] for one in (robust, file)
    ]
    assert shown[0] == shown[1]


def test_relative_accuracy_is_divided_by_the_clean_accuracy(robust: xr.DataTree) -> None:
    ax = plot.corruption_accuracy(robust, relative=True)
    accuracy = robust["robustness"]["accuracy"].values / 0.9
    expected = [f"{100 * value:.0f}" for value in np.vstack([accuracy, accuracy.mean(0)]).ravel()]
    assert [text.get_text() for text in ax.texts] == expected


def test_several_results_are_rows_of_means(robust: xr.DataTree) -> None:
    worse = robust.copy(deep=True)
    worse["robustness"]["accuracy"] -= 0.1
    ax = plot.corruption_accuracy({"plain": robust, "worse": worse})
    mean = robust["robustness"]["accuracy"].values.mean(1)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), mean)
    np.testing.assert_allclose(ax.lines[1].get_xdata(), mean - 0.1)
    spans = np.array(ax.collections[0].get_segments())[:, :, 0]
    ends = robust["robustness"]["accuracy"].values[:, [2, 0]]
    np.testing.assert_allclose(spans, ends)
    assert "severity 1 to 5" in ax.get_xlabel()


def test_only_conditions_common_to_all_results_are_compared(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset()
    part = table.isel(corruption=[2, 1], severity=[2])
    ax = plot.corruption_accuracy({"all": table, "part": part})
    assert [text.get_text() for text in ax.get_yticklabels()] == ["fog", "contrast"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), table["accuracy"].values[[1, 2], 2])
    nothing = table.isel(corruption=[0]), table.isel(corruption=[1])
    with pytest.raises(DataError, match="no corruption in common"):
        plot.corruption_accuracy(dict(zip("ab", nothing, strict=True)))


def test_a_result_without_corruptions_is_refused(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset().drop_vars("accuracy")
    with pytest.raises(DataError, match="ask robustness for corruptions"):
        plot.corruption_accuracy(table)
