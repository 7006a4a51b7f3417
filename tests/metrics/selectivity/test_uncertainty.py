"""Chance, split halves and intervals together in one pass, and the index of all classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from torch import nn

import probekit as pk
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.metrics.selectivity.index import SelectivityIndex
from selectivity_samples import evaluate

means = arrays(np.float64, (4, 5), elements=st.floats(-2, 8, width=32))


@settings(deadline=None, max_examples=50)
@given(means, st.sampled_from(["clip", "shift", "nan"]))
def test_the_highest_index_over_all_classes_is_the_index(table: np.ndarray, negative: Any) -> None:
    expected = pk.class_selectivity(xr.DataArray(table, dims=("unit", "class")), negative=negative)
    formula = SelectivityIndex(negative=negative)
    every = formula.of_classes(table)
    np.testing.assert_allclose(formula.at(table), expected, atol=1e-9)
    np.testing.assert_allclose(every.max(1), expected, atol=1e-9)


@pytest.fixture(autouse=True)
def _warnings_about_negative_means() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*below zero", ProbekitWarning)
        yield


def test_absent_classes_are_ignored() -> None:
    table = np.array([[3.0, np.nan, 1.0], [np.nan, np.nan, 1.0]])
    assert SelectivityIndex(eps=0).at(table).tolist()[0] == 0.5
    assert np.isnan(SelectivityIndex().at(table)[1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pk.SelectivityChance, {"permutations": 1}),
        (pk.SelectivityChance, {"eps": -1}),
        (pk.SplitHalf, {"splits": 1}),
        (pk.SplitHalf, {"negative": "drop"}),
        (pk.SelectivityInterval, {"level": 95}),
        (pk.SelectivityInterval, {"replicates": 3}),
        (pk.SelectivityInterval, {"splits": 1}),
    ],
)
def test_invalid_options_are_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        kind(**options)


@pytest.mark.parametrize("kind", [pk.SelectivityChance, pk.SplitHalf, pk.SelectivityInterval])
def test_a_single_class_is_refused(kind: Any) -> None:
    labels = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(DataError, match="at least two"):
        evaluate(kind(), (torch.rand(8, 3), labels, torch.arange(8)))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten())


METRICS = [
    "selectivity",
    pk.SelectivityChance(permutations=19),
    pk.SplitHalf(splits=5),
    pk.SelectivityInterval(replicates=30, splits=5),
]


def test_one_pass_gives_all_metrics_and_batches_and_order_do_not_matter(
    network: nn.Sequential,
) -> None:
    images = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(90) % 3
    results = [
        pk.analyze(network, (images, labels), metrics=METRICS, batch_size=size, progress=False)
        for size in (90, 16)
    ]
    for group in ("units", "layers"):
        first, second = (result[group].to_dataset() for result in results)
        xr.testing.assert_allclose(first, second, rtol=1e-5)
    whole = results[0]
    assert set(whole["units"].data_vars) >= {
        "selectivity", "selectivity_chance", "selectivity_z", "selectivity_p", "selectivity_q",
        "selectivity_p_corrected", "selectivity_split_half", "preferred_class_agreement",
        "selectivity_low", "selectivity_high",
    }  # fmt: skip
    low, high = whole["selectivity_mean_low"].item(), whole["selectivity_mean_high"].item()
    assert low < whole["selectivity_split_half_mean"].item() < high
    drawn = whole["layers"]["selectivity_mean_replicate"].mean("layer").std(ddof=1).item()
    ends = (whole["layers"][f"selectivity_mean_{end}"].mean() for end in ("floor", "ceiling"))
    floor, ceiling = (end.item() for end in ends)
    margin = stats.t.ppf(0.975, 58) * drawn
    assert low == pytest.approx(min(floor, ceiling) - margin, rel=1e-9)
    assert high == pytest.approx(max(floor, ceiling) + margin, rel=1e-9)
    q = stats.false_discovery_control(whole["units"]["selectivity_p"].values)
    np.testing.assert_array_equal(whole["units"]["selectivity_q"], q)


@pytest.mark.filterwarnings("ignore:.*active for fewer than 5 samples")
def test_few_samples_are_reported(network: nn.Sequential) -> None:
    batch = (torch.rand(6, 1, 8, 8), torch.arange(6) % 2)
    metric = pk.SelectivityInterval(replicates=20)
    with pytest.warns(ProbekitWarning, match="a class has 3 samples"):
        pk.analyze(network, [batch], metrics=metric, progress=False)


@pytest.mark.filterwarnings("ignore:.*active for fewer than 5 samples")
def test_results_are_saved_and_reopened(network: nn.Sequential, tmp_path: Any) -> None:
    images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    result = pk.analyze(network, (images, labels), metrics=METRICS, progress=False)
    again = pk.open_result(pk.save_result(result, tmp_path / "r.nc"))
    for group in ("units", "layers"):
        assert again[group].to_dataset().equals(result[group].to_dataset())


class Lowered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = nn.Identity(), nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        lowered: torch.Tensor = self.low(self.high(images) - 10)
        return lowered


def test_units_without_an_index_have_no_number_and_change_none() -> None:
    random, labels = np.random.default_rng(0), torch.arange(120) % 4
    table = torch.from_numpy(random.random((120, 6)) + 1)
    # Some halves and permutations have no class mean below zero.
    table[:, 0] = 0.3 * torch.from_numpy(random.normal(size=120)) + 0.8 * (labels == 1)
    metrics: list[Any] = [
        kind(negative="nan")
        for kind in (pk.Selectivity, pk.SelectivityInterval, pk.SelectivityChance, pk.SplitHalf)
    ]
    both = pk.analyze(Lowered(), (table, labels), ["high", "low"], metrics)
    known = pk.analyze(Lowered(), (table[:, 1:], labels), "high", metrics)
    names = [f"selectivity{end}" for end in ("", "_low", "_high", "_split_half", "_chance", "_z")]
    for name in [*names, "selectivity_p", "selectivity_p_corrected", "selectivity_q"]:
        found, expected = (one["units"][name].values for one in (both, known))
        assert np.isnan(found[[0, *range(6, 12)]]).all(), name
        np.testing.assert_allclose(found[1:6], expected, rtol=1e-9, err_msg=name)
    for name in ("selectivity_mean_low", "selectivity_mean_high", "selectivity_reliability"):
        found, expected = (one["layers"][name].values for one in (both, known))
        np.testing.assert_allclose(found, [expected.item(), np.nan], rtol=1e-9, err_msg=name)
    for name in ("selectivity_mean_low", "selectivity_mean_high", "selectivity_split_half_mean"):
        np.testing.assert_allclose(both[name], known[name], rtol=1e-9, err_msg=name)
