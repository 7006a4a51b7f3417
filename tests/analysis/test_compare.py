"""Differences between two results equal those of their tables, with scipy's intervals."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import probekit as pk
from probekit.cli.app import app
from probekit.errors import DataError, OptionError, ProbekitWarning

DATA = [
    (torch.rand(120, 2, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3)
]


def result(seed: int, width: int = 12, data: Any = DATA) -> xr.DataTree:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU(), nn.Flatten()
    )
    return pk.analyze(net, data, metrics=["selectivity", "dimensionality"])


@pytest.fixture(scope="module")
def results() -> tuple[xr.DataTree, xr.DataTree]:
    return result(0), result(1)


def values(tree: xr.DataTree, layer: str) -> np.ndarray:
    units = tree["units"].to_dataset()
    return units["selectivity"].values[units["layer"].values == layer]


@pytest.mark.parametrize("paired", [False, True])
def test_differences_and_intervals_are_those_of_scipy(
    results: tuple[xr.DataTree, xr.DataTree], paired: bool
) -> None:
    found = pk.compare(*results, paired=paired, level=0.9)["layers"]
    for layer in ("1", "3"):
        one, other = (values(tree, layer) for tree in results)
        known = [~np.isnan(one), ~np.isnan(other)]
        if paired:
            both = known[0] & known[1]
            test = stats.ttest_rel(other[both], one[both])
        else:
            one, other = one[known[0]], other[known[1]]
            test = stats.ttest_ind(other, one, equal_var=False)
        low, high = test.confidence_interval(0.9)
        row = found.to_dataset().sel(layer=layer)
        assert float(row["selectivity_low"]) == pytest.approx(low)
        assert float(row["selectivity_high"]) == pytest.approx(high)
        assert float(row["selectivity_difference"]) == pytest.approx((low + high) / 2)
    ratios = [tree["layers"]["participation_ratio"].values for tree in results]
    np.testing.assert_allclose(found["participation_ratio_difference"], ratios[1] - ratios[0])


def test_units_are_subtracted_one_by_one_in_pairs(results: tuple[xr.DataTree, xr.DataTree]) -> None:
    units = pk.compare(*results, paired=True)["units"].to_dataset()
    one, other = (tree["units"]["selectivity"].values for tree in results)
    np.testing.assert_allclose(units["selectivity_difference"], other - one)
    assert "units" not in pk.compare(*results).children


def test_pairs_are_matched_by_channel(results: tuple[xr.DataTree, xr.DataTree]) -> None:
    sorted_units = results[1]["units"].to_dataset().sortby("selectivity")
    other = results[1].copy()
    other["units"] = xr.DataTree(sorted_units)
    found = pk.compare(results[0], other, paired=True)
    xr.testing.assert_identical(found["units"], pk.compare(*results, paired=True)["units"])
    for layer in ("1", "3"):
        low, high = stats.ttest_rel(
            values(results[1], layer), values(results[0], layer)
        ).confidence_interval(0.95)
        row = found["layers"].to_dataset().sel(layer=layer)
        assert [float(row["selectivity_low"]), float(row["selectivity_high"])] == pytest.approx(
            [low, high]
        )
    other["units"] = xr.DataTree(sorted_units.assign_coords(channel=sorted_units["channel"] + 1))
    with pytest.raises(DataError, match="12 and 12 units, which cannot be paired"):
        pk.compare(results[0], other, paired=True)


def test_a_result_does_not_differ_from_itself(results: tuple[xr.DataTree, xr.DataTree]) -> None:
    found = pk.compare(results[0], results[0])["layers"]
    assert not found["selectivity_difference"].any()
    assert bool((found["selectivity_low"] <= 0).all() and (found["selectivity_high"] >= 0).all())


def test_results_that_are_not_comparable_are_reported(
    results: tuple[xr.DataTree, xr.DataTree],
) -> None:
    with pytest.raises(DataError, match="12 and 10 units, which cannot be paired"):
        pk.compare(results[0], result(1, width=10), paired=True)
    with pytest.warns(ProbekitWarning, match="different images"):
        pk.compare(results[0], result(0, data=[(DATA[0][0][:90], DATA[0][1][:90])]))
    linear = pk.analyze(nn.Sequential(nn.Flatten(), nn.Linear(72, 9)), DATA, layers=["0"])
    with pytest.raises(DataError, match="no layer in common"):
        pk.compare(results[0], linear)
    with pytest.raises(OptionError, match="a result must be a DataTree or a file, not Dataset"):
        pk.compare(results[0], results[1]["units"].to_dataset())


def test_the_command_prints_and_writes_differences(
    results: tuple[xr.DataTree, xr.DataTree], tmp_path: Path
) -> None:
    files = [str(tmp_path / name) for name in ("one.nc", "other.nc")]
    for tree, file in zip(results, files, strict=True):
        pk.save_result(tree, file)
    out, figure, page = (tmp_path / name for name in ("difference.nc", "figure.png", "page.html"))
    done = CliRunner().invoke(
        app,
        ["compare", *files, "-o", str(out), "-o", str(figure), "--report", str(page), "--json"],
    )
    assert done.exit_code == 0, done.output
    expected = pk.compare(*results)["layers"]["selectivity_difference"].values
    rows = json.loads(done.stdout)
    np.testing.assert_allclose([row["difference"] for row in rows], expected)
    np.testing.assert_allclose(
        pk.open_result(out)["layers"]["selectivity_difference"].values, expected
    )
    assert figure.stat().st_size > 1000
    layers = pk.compare(*results)["layers"].isel(layer=1)
    ends = [f"{float(layers[f'selectivity_{end}']):.3f}" for end in ("difference", "low", "high")]
    shown = "{} ({} to {})".format(*ends).replace("-", "\N{MINUS SIGN}")
    text = page.read_text()
    assert '<section id="differences">' in text
    assert f"<td>{shown}</td>" in text
    wrong = CliRunner().invoke(app, ["compare", *files, "--variable", "selectivty"])
    assert wrong.exit_code == 2


def test_other_options_of_a_metric_are_reported(results: tuple[xr.DataTree, xr.DataTree]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 12, 3), nn.Tanh(), nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (
            pk.analyze(net, DATA, "1", pk.Selectivity(negative=negative))
            for negative in ("clip", "shift")
        )
    said = 'metrics.selectivity.negative was "clip" and is "shift"'
    with pytest.warns(ProbekitWarning, match=f"measured with different options.*{said}"):
        pk.compare(one, other)


def test_other_images_of_a_plain_data_set_are_reported() -> None:
    images, labels = DATA[0]
    one, same, other = (
        result(0, data=TensorDataset(x, labels)) for x in (images, images, images + 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.compare(one, same)
    with pytest.warns(ProbekitWarning, match="of different images"):
        pk.compare(one, other)


@pytest.mark.filterwarnings("ignore:.* have fewer than 20 samples")
def test_images_in_two_sizes_are_compared_as_they_are_stored(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(12):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).save(file)

    def measured(data: Any, size: int, channels: int = 3) -> xr.DataTree:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        model = pk.ImageModel(net.eval(), input_size=(channels, size, size))
        return pk.analyze(model, pk.load_data(data, model), progress=False, limit=40)

    small, large = measured(tmp_path, 16), measured(tmp_path, 24)
    digits = measured("digits", 8, 1), measured("digits", 12, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.compare(small, large)
        pk.compare(*digits)
    (tmp_path / "a" / "0.png").write_bytes((tmp_path / "b" / "1.png").read_bytes())
    for other in (measured(tmp_path, 24), measured(tmp_path, 16)):
        with pytest.warns(ProbekitWarning, match="of different images"):
            pk.compare(small, other)
