"""The streamed covariance compared with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from probekit.capture.plan import scout_layers
from probekit.errors import DataError, OptionError
from probekit.statistics.covariance import Covariance


def stream(statistic: Covariance, rows: np.ndarray, batch: int) -> Any:
    one = statistic.fresh()
    for part in torch.from_numpy(rows).split(batch):
        one.update(part, torch.zeros(len(part)))
    return one


def cube(offset: float = 0.0, rows: int = 200, columns: int = 7, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(rows, columns)) @ rng.normal(size=(columns, columns)) + offset


@pytest.mark.parametrize("spatial", ["mean", "flatten"])
@pytest.mark.parametrize("columns", [1, 7, 300])
@pytest.mark.parametrize("batch", [1, 13, 200])
def test_covariance_equals_numpy(spatial: Any, columns: int, batch: int) -> None:
    rows = cube(columns=columns)
    found = stream(Covariance(spatial), rows, batch).to_xarray()
    expected = np.cov(rows, rowvar=False).reshape(columns, columns)
    if "gram" in found:
        assert (spatial, columns) == ("flatten", 300)
        centered = rows - rows.mean(0)
        np.testing.assert_allclose(found["gram"], centered @ centered.T / 199, atol=1e-10)
        np.testing.assert_allclose(np.trace(found["gram"]), np.trace(expected), rtol=1e-12)
        np.testing.assert_allclose((found["gram"] ** 2).sum(), (expected**2).sum(), rtol=1e-12)
    else:
        scale = abs(expected).max()
        np.testing.assert_allclose(found["covariance"], expected, rtol=1e-12, atol=1e-13 * scale)
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found["variance"], rows.var(0, ddof=1), rtol=1e-11)
    squares = ((rows - rows.mean(0)) ** 2).sum(1)
    np.testing.assert_allclose(found["fourth_moment"], (squares**2).sum() / 199, rtol=1e-11)
    assert (int(found["count"]), int(found["n_dimensions"])) == (200, columns)


@pytest.mark.parametrize("columns", [7, 300])
def test_moments_about_zero(columns: int) -> None:
    rows = cube(offset=2.0, columns=columns)
    expected = rows.T @ rows / len(rows)
    for spatial in ("mean", "flatten"):
        found = stream(Covariance(spatial, centered=False), rows, 50).to_xarray()
        if "gram" in found:
            np.testing.assert_allclose(found["gram"], rows @ rows.T / len(rows), rtol=1e-11)
        else:
            np.testing.assert_allclose(found["covariance"], expected, rtol=1e-11)
        fourth = ((rows**2).sum(1) ** 2).mean()
        np.testing.assert_allclose(found["fourth_moment"], fourth, rtol=1e-11)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 39), min_size=1, max_size=4, unique=True),
    spatial=st.sampled_from(["mean", "flatten"]),
    columns=st.sampled_from([3, 60]),
)
def test_merging_in_any_order_equals_the_whole(
    seed: int, cuts: list[int], spatial: Any, columns: int
) -> None:
    rows = cube(rows=40, columns=columns, seed=seed)
    parts = np.split(rows, sorted(cuts))
    expected = np.linalg.eigvalsh(np.cov(rows, rowvar=False))[::-1]
    merged = Covariance(spatial)
    for number in np.random.default_rng(seed).permutation(len(parts)):
        merged.merge(stream(Covariance(spatial), parts[number], 6))
    found = merged.to_xarray()
    matrix = found["gram"] if "gram" in found else found["covariance"]
    values = np.linalg.eigvalsh(matrix)[::-1]
    least = min(len(values), len(expected))
    np.testing.assert_allclose(values[:least], expected[:least], atol=1e-11 * expected[0])
    squares = ((rows - rows.mean(0)) ** 2).sum(1)
    np.testing.assert_allclose(found["fourth_moment"], (squares**2).sum() / 39, rtol=1e-11)


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e8])
def test_a_large_offset_does_not_reduce_precision(offset: float) -> None:
    rows = cube() / 100
    shifted = rows + offset
    expected = np.cov(shifted - offset, rowvar=False)
    for batch in (1, 64):
        found = stream(Covariance(), shifted, batch).to_xarray()
        np.testing.assert_allclose(found["covariance"], expected, atol=1e-9 * abs(expected).max())
    one_pass = (shifted.T @ shifted - np.outer(shifted.sum(0), shifted.mean(0))) / 199
    if offset >= 1e6:
        assert abs(one_pass - expected).max() > 1e-3 * abs(expected).max()


def test_an_initial_outlier_hardly_reduces_precision() -> None:
    rows = cube(rows=2000)
    rows[0] = 1e5
    found = stream(Covariance(), rows, 1).to_xarray()["covariance"]
    np.testing.assert_allclose(found, np.cov(rows, rowvar=False), rtol=1e-9)


def test_later_batches_may_differ_in_distribution_from_the_first() -> None:
    rows = np.concatenate([cube(rows=64), cube(rows=200, seed=1) * 50 + 1e4])
    found = stream(Covariance(), rows, 64).to_xarray()["covariance"]
    np.testing.assert_allclose(found, np.cov(rows, rowvar=False), rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_float64_for_any_input_dtype(dtype: torch.dtype) -> None:
    rows = (torch.from_numpy(cube(rows=500)) * 300).to(dtype)
    statistic = Covariance()
    statistic.update(rows, torch.zeros(500))
    expected = np.cov(rows.double().numpy(), rowvar=False)
    np.testing.assert_allclose(statistic.to_xarray()["covariance"], expected, rtol=1e-10)


def test_mismatched_column_counts_and_shapes_are_refused() -> None:
    statistic = Covariance()
    statistic.update(torch.ones(2, 3), torch.zeros(2))
    with pytest.raises(DataError, match="covariance of 3 columns cannot add rows of 4"):
        statistic.update(torch.ones(2, 4), torch.zeros(2))
    with pytest.raises(DataError, match=r"needs \(rows, columns\)"):
        statistic.update(torch.ones(2, 4, 4), torch.zeros(2))


@pytest.mark.parametrize(("centered", "least"), [(True, 2), (False, 1)])
def test_too_few_rows_for_a_covariance_are_refused(centered: bool, least: int) -> None:
    for spatial in ("mean", "flatten"):
        statistic = Covariance(spatial, centered=centered)
        for count in range(least):
            assert count < least
            with pytest.raises(DataError, match=f"at least {least} rows, and there are {count}"):
                statistic.to_xarray()
            statistic.update(torch.ones(1, 3), torch.zeros(1))
        statistic.to_xarray()


@pytest.mark.parametrize("options", [{"spatial": "none"}, {"memory": 0}, {"memory": 1e9}], ids=repr)
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Covariance(**options)


class TestMemory:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))

    def layers(self) -> Any:
        return scout_layers(self.net, torch.rand(2, 1, 8, 8), ["0", "1"])[0]

    def test_is_checked_before_a_pass_from_the_number_of_samples(self) -> None:
        # Two layers of 8 x 6 x 6 = 288 elements of 4 bytes, and a Gram matrix with workspace.
        needed = 2 * 100 * 288 * 4 + 48 * 100**2
        Covariance("flatten", memory=needed).check(self.layers(), 100)
        with pytest.raises(OptionError, match=r"2 layers over 100 samples.*288 .*limit"):
            Covariance("flatten", memory=needed - 1).check(self.layers(), 100)

    @pytest.mark.parametrize("samples", [288, 10**6, None])
    def test_is_that_of_the_covariance_for_many_samples(self, samples: int | None) -> None:
        needed = 2 * 8 * 288**2 + 48 * 288**2
        Covariance("flatten", memory=needed).check(self.layers(), samples)
        with pytest.raises(OptionError, match="or raise memory"):
            Covariance("flatten", memory=needed - 1).check(self.layers(), samples)

    def test_of_pooled_units_depends_on_units_alone(self) -> None:
        for spatial in ("mean", "positions"):
            Covariance(spatial, memory=64 * 64).check(self.layers(), None)
            with pytest.raises(OptionError, match="narrower"):
                Covariance(spatial, memory=64 * 64 - 1).check(self.layers(), None)

    def test_is_also_checked_during_the_pass(self) -> None:
        statistic = Covariance("flatten", memory=100_000)
        statistic.update(torch.rand(10, 500), torch.zeros(10))
        with pytest.raises(OptionError, match=r"over 60 rows needs .* of memory"):
            statistic.update(torch.rand(50, 500), torch.zeros(50))
        with pytest.raises(OptionError, match="400 dimensions"):
            Covariance(memory=100_000).update(torch.rand(10, 400), torch.zeros(10))

    def test_of_the_state_does_not_grow_with_samples(self) -> None:
        statistic = Covariance()
        sizes = []
        for _ in range(3):
            statistic.update(torch.rand(500, 20), torch.zeros(500))
            sizes.append(sum(part.nbytes for part in statistic.state.values()))
        assert len(set(sizes)) == 1
