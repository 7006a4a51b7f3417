"""Accuracy under attack, over epsilon and over steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import probekit as pk
from probekit import plot
from probekit.errors import DataError, OptionError, ProbekitWarning


def test_curves_start_at_the_clean_accuracy(robust: xr.DataTree) -> None:
    ax = plot.attack_accuracy(robust)
    table = robust["robustness"].to_dataset()
    for line, values in zip(ax.lines, table["attack_accuracy"].values, strict=True):
        np.testing.assert_allclose(line.get_xdata(), [0, 1, 2, 4, 8])
        np.testing.assert_allclose(line.get_ydata(), [0.9, *values])
    assert ax.get_xlabel() == "ε (1/255)"


def test_other_radii_are_shown_unchanged(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset().assign_coords(epsilon=[0.25, 0.5, 1.0, 2.0])
    ax = plot.attack_accuracy(table, attack="pgd")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 0.25, 0.5, 1, 2])
    assert ax.get_xlabel() == "ε"


def test_radii_missing_from_one_attack_are_left_out(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset()
    table["attack_accuracy"][0, 1] = np.nan
    ax = plot.attack_accuracy(table)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 1, 4, 8])


def test_a_radius_that_a_replicate_lacks_is_reported(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset()
    with pytest.warns(ProbekitWarning, match=r"1 of 5 means .* \(down to 1\) .* others \(2\)"):
        ax = plot.attack_accuracy({"a": [table, table.isel(epsilon=[0, 1, 3])]}, attack="pgd")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 1, 2, 4, 8])


def test_step_curves_show_only_attacks_with_steps(robust: xr.DataTree) -> None:
    ax = plot.attack_accuracy(robust, over="step")
    values = robust["robustness"]["attack_accuracy_by_step"].sel(attack="pgd").values
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], values)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(11))
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1", "2", "4", "8"]


def test_a_radius_is_selected_for_step_curves(robust: xr.DataTree) -> None:
    ax = plot.attack_accuracy({"a": robust, "b": robust}, over="step", epsilon=2 / 255)
    expected = robust["robustness"]["attack_accuracy_by_step"].values[1, 1]
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], [expected] * 2)


def test_the_largest_radius_is_found_in_any_order(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset().isel(epsilon=[3, 0, 2, 1])
    ax = plot.attack_accuracy({"a": table, "b": robust}, over="step")
    expected = robust["robustness"]["attack_accuracy_by_step"].values[1, 3]
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], [expected] * 2)


def test_the_mean_over_types_is_that_of_the_result() -> None:
    accuracy = [[0.8, 0.4], [0.6, 0.2]]
    table = xr.Dataset(
        {"accuracy": (("corruption", "severity"), accuracy), "clean_accuracy": 0.9},
        {"corruption": ["fog", "speckle_noise"], "severity": [1, 5]},
    )
    table["accuracy_relative"] = table["accuracy"] / 0.9
    table["accuracy_by_severity"] = ("severity", accuracy[0])  # of the standard type
    for relative, divisor in ((False, 1.0), (True, 0.9)):
        drawn = plot.corruption_accuracy(table, relative=relative).images[0].get_array()
        assert drawn is not None
        np.testing.assert_allclose(drawn[-1], np.array(accuracy[0]) / divisor)


def test_the_mean_over_types_is_that_of_the_types_shown(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset().isel(corruption=[0, 1])
    drawn = plot.corruption_accuracy(table).images[0].get_array()
    assert drawn is not None
    np.testing.assert_allclose(drawn[-1], table["accuracy"].mean("corruption"))


def test_alphas_get_their_colors_and_replicates_a_band(robust: xr.DataTree) -> None:
    worse = robust.copy(deep=True)
    worse["robustness"]["attack_accuracy"] -= 0.02
    ax = plot.attack_accuracy({0.0: [robust, worse], -1.0: worse}, attack="pgd")
    values = robust["robustness"]["attack_accuracy"].values[1]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.9, *(values - 0.01)])
    assert ax.lines[1].get_color() == "#101010"
    assert len(ax.collections) == 1


MISTAKES = [
    ({"over": "time"}, OptionError, "over must be 'epsilon' or 'step'"),
    ({"attack": "pdg"}, OptionError, "no attack 'pdg'; close matches: pgd"),
    ({"over": "step", "epsilon": 0.5}, OptionError, "no attack of epsilon 0.5; known: 0.003922"),
    ({"epsilon": 1 / 255}, OptionError, "shows all of them"),
    ({"over": "step", "attack": "fgsm"}, DataError, "takes several steps; use pk.PGD"),
]


@pytest.mark.parametrize(("options", "kind", "message"), MISTAKES)
def test_mistakes_are_reported(
    options: dict, kind: type, message: str, robust: xr.DataTree
) -> None:
    with pytest.raises(kind, match=message):
        plot.attack_accuracy(robust, **options)


def test_results_without_common_attacks_are_refused(robust: xr.DataTree) -> None:
    table = robust["robustness"].to_dataset()
    parts = {"a": table.isel(attack=[0]), "b": table.isel(attack=[1])}
    with pytest.raises(DataError, match="no attack in common"):
        plot.attack_accuracy(parts)
    with pytest.raises(DataError, match="ask robustness for some"):
        plot.attack_accuracy(table.drop_vars(["attack_accuracy", "attack_accuracy_by_step"]))
    with pytest.raises(DataError, match="after each step"):
        plot.attack_accuracy(table.drop_vars("attack_accuracy_by_step"), over="step")


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
