"""Dimensionality compared with numpy, scikit-learn, scikit-dimension and known ground truth."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import special_ortho_group
from sklearn.decomposition import PCA
from torch import nn

from probekit.analysis.analyze import analyze
from probekit.capture.record import record
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.metrics.dimensionality import (
    Dimensionality,
    components,
    eigenvalues,
    participation_ratio,
    participation_ratio_corrected,
    participation_ratio_unbiased,
)
from probekit.statistics.covariance import Covariance
from probekit.statistics.recorded import SampledRows

FUNCTIONS = (participation_ratio, participation_ratio_corrected, components)


def covariance_of(rows: np.ndarray, spatial: Any = "mean", centered: bool = True) -> xr.Dataset:
    statistic = Covariance(spatial, centered=centered)
    for part in torch.from_numpy(np.ascontiguousarray(rows)).split(50):
        statistic.update(part, torch.zeros(len(part)))
    return statistic.to_xarray()


def table(seed: int = 0, rows: int = 300, columns: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(rows, columns)) @ rng.normal(size=(columns, columns)) + 3


def ratio_of(values: np.ndarray) -> float:
    return float(values.sum() ** 2 / (values**2).sum())


@pytest.mark.parametrize("shape", [(300, 12), (40, 90), (91, 90), (90, 90), (2, 5), (5, 1)])
@pytest.mark.parametrize("spatial", ["mean", "flatten"])
def test_the_metric_equals_numpy_and_scikit_learn(shape: tuple[int, int], spatial: Any) -> None:
    rows = table(0, *shape)
    found = covariance_of(rows, spatial)
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(rows, rowvar=False)))[::-1]
    assert participation_ratio(found).item() == pytest.approx(ratio_of(values), rel=1e-9)
    least = min(shape)
    np.testing.assert_allclose(eigenvalues(found)[:least], values[:least], atol=1e-10 * values[0])
    pca = PCA(svd_solver="full").fit(rows)
    shares = (0.3, 0.9, 0.95, 0.99)
    explained = np.cumsum(pca.explained_variance_ratio_)
    expected = [int(np.argmax(explained >= share)) + 1 for share in shares]
    assert components(found, shares).values.tolist() == expected
    np.testing.assert_array_equal(components(found, shares)["variance"], shares)


def test_components_equal_the_choice_of_scikit_learn() -> None:
    rows = table(columns=30)
    for share in (0.5, 0.9, 0.95, 0.99):
        chosen = PCA(n_components=share, svd_solver="full").fit(rows).n_components_
        assert components(covariance_of(rows), (share,)).item() == chosen


@pytest.mark.parametrize("columns", [3, 12, 40])
def test_participation_ratio_equals_scikit_dimension(columns: int) -> None:
    skdim = pytest.importorskip("skdim", reason="scikit-dimension is not installed")
    rows = table(columns=columns)
    peer = skdim.id.lPCA(ver="participation_ratio").fit(rows)
    assert participation_ratio(covariance_of(rows)).item() == pytest.approx(peer.dimension_)


def within_limits(square_of_trace: float, trace_of_square: float, columns: int) -> float:
    """The ratio, clipped to [1, number of columns]; the upper limit if the denominator is not positive."""
    if trace_of_square <= 0:
        return columns
    return min(max(square_of_trace / trace_of_square, 1), columns)


@pytest.mark.parametrize("count", [4, 5, 7])
@pytest.mark.parametrize("columns", [1, 2, 9])
def test_corrected_traces_are_u_statistics(count: int, columns: int) -> None:
    """The mean over all quadruples of different samples, each term of which is unbiased."""
    rows = table(count, count, columns)
    square_of_trace = trace_of_square = 0.0
    quadruples = list(permutations(rows, 4))
    for a, b, c, d in quadruples:
        square_of_trace += ((a - b) @ (a - b)) * ((c - d) @ (c - d)) / 4 / len(quadruples)
        trace_of_square += ((a - b) @ (c - d)) ** 2 / 4 / len(quadruples)
    expected = within_limits(square_of_trace, trace_of_square, columns)
    for spatial in ("mean", "flatten"):
        found = participation_ratio_corrected(covariance_of(rows, spatial)).item()
        assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("count", [2, 6])
def test_corrected_traces_about_zero_are_u_statistics(count: int) -> None:
    rows = table(1, count, 4)
    pairs = list(permutations(rows, 2))
    square_of_trace = sum((a @ a) * (b @ b) for a, b in pairs)
    expected = within_limits(square_of_trace, sum((a @ b) ** 2 for a, b in pairs), 4)
    found = participation_ratio_corrected(covariance_of(rows, centered=False)).item()
    assert found == pytest.approx(expected, rel=1e-8)


def spectrum_of_ratio(ratio: float, dimensions: int) -> np.ndarray:
    """Exponentially decaying eigenvalues with a given participation ratio."""

    def falling(rate: float) -> np.ndarray:
        return np.exp(-rate * np.arange(dimensions) / dimensions)

    return falling(brentq(lambda rate: ratio_of(falling(rate)) - ratio, 0.01, 50))


@pytest.mark.parametrize("distribution", ["standard_normal", "standard_exponential"])
def test_correction_recovers_the_truth_from_few_samples(distribution: str) -> None:
    """60 samples of 200 dimensions with a true ratio of 116.6: about 39 uncorrected, about 117 corrected."""
    draw = getattr(np.random.default_rng(0), distribution)
    deviations = np.sqrt(spectrum_of_ratio(116.6, 200))
    plain, corrected = [], []
    for _ in range(100):
        found = covariance_of(draw((60, 200)) * deviations + 5, "flatten")
        plain.append(participation_ratio(found).item())
        corrected.append(participation_ratio_corrected(found).item())
    assert np.mean(plain) == pytest.approx(39, abs=2)
    error = np.std(corrected) / np.sqrt(len(corrected))
    assert error < 1.5
    assert np.mean(corrected) == pytest.approx(116.6, abs=3 * error + 0.5)


def test_sparse_units_do_not_exceed_the_dimensions() -> None:
    """At 30 samples and 64 dimensions, the ratio of unbiased terms exceeds 300 or is negative."""
    draws = np.random.default_rng(0)
    for _ in range(20):
        rows = draws.exponential(size=(30, 64)) * (draws.random((30, 64)) < 0.02)
        found = participation_ratio_corrected(covariance_of(rows)).item()
        assert 1 <= found <= (rows.var(0) > 0).sum()


def test_the_deprecated_name_gives_the_same_value() -> None:
    found = covariance_of(table(1, 30, 5))
    former = participation_ratio_unbiased(found)
    assert former.item() == participation_ratio_corrected(found).item()
    assert former.name == "participation_ratio_unbiased"


@pytest.mark.parametrize(("samples", "kept"), [(100, 500), (400, 100)])
def test_the_jackknife_error_is_the_standard_deviation_over_repeated_draws(
    samples: int, kept: int
) -> None:
    draws = np.random.default_rng(0)
    metric = Dimensionality(jackknife=kept)
    assert metric.needs[1] == SampledRows(kept)
    ratios, errors = [], []
    for _ in range(60):
        rows = draws.normal(size=(samples, 12)) * np.sqrt(0.7 ** np.arange(12))
        sampled = xr.Dataset({"activation": (("sample", "unit"), rows[:kept])})
        layer = metric.evaluate(covariance_of(rows), sampled)[1]
        ratios.append(layer["participation_ratio_corrected"].item())
        errors.append(layer["participation_ratio_corrected_error"].item())
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.35)


def test_the_jackknife_of_stored_rows_equals_that_of_the_rows() -> None:
    rows = table(3, 60, 90)
    found = covariance_of(rows, "flatten")
    assert "gram" in found
    sampled = xr.Dataset({"activation": (("sample", "unit"), rows)})
    error = "participation_ratio_corrected_error"
    by_gram = Dimensionality(spatial="flatten").evaluate(found)[1][error].item()
    by_rows = Dimensionality().evaluate(covariance_of(rows), sampled)[1][error].item()
    assert by_gram == pytest.approx(by_rows, rel=1e-8)
    assert by_gram > 0


def test_no_error_is_given_for_few_samples_or_when_disabled() -> None:
    rows = table(3, 39, 5)
    sampled = xr.Dataset({"activation": (("sample", "unit"), rows)})
    for metric, rows_given in ((Dimensionality(), sampled), (Dimensionality(jackknife=0), None)):
        layer = metric.evaluate(covariance_of(rows), rows_given)[1]
        assert np.isnan(layer["participation_ratio_corrected_error"])
    assert len(Dimensionality(jackknife=0).needs) == 1


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-3, 1e3),
    rows=st.integers(5, 40),
    columns=st.integers(1, 30),
)
def test_rotation_scale_and_shift_change_nothing(
    seed: int, scale: float, rows: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(rows, columns)) * rng.uniform(0.5, 2, columns)
    turn = special_ortho_group.rvs(columns, random_state=rng) if columns > 1 else np.eye(1)
    after = before @ turn * scale + rng.normal(size=columns)
    for function in (participation_ratio, participation_ratio_corrected):
        one, other = function(covariance_of(before)).item(), function(covariance_of(after)).item()
        assert one == pytest.approx(other, rel=1e-6, nan_ok=True)
    ratio = participation_ratio(covariance_of(before)).item()
    assert 1 - 1e-9 <= ratio <= min(columns, rows - 1) + 1e-9
    counts = components(covariance_of(before), (0.5, 0.9, 1.0)).values
    assert (np.diff(counts) >= 0).all()
    assert counts[-1] <= min(columns, rows - 1)


@pytest.mark.parametrize("dimensions", [1, 2, 10, 64])
def test_equal_variances_use_all_dimensions(dimensions: int) -> None:
    matrix = np.eye(dimensions) * 0.1
    assert participation_ratio(matrix).item() == pytest.approx(dimensions)
    assert components(matrix, (1.0,)).item() == dimensions
    if dimensions == 10:
        assert components(matrix, (0.1, 0.3, 0.7, 0.9, 0.95)).values.tolist() == [1, 3, 7, 9, 10]


def test_constant_data_has_no_dimension() -> None:
    for constant in (0.0, 0.1):
        found = covariance_of(np.full((20, 5), constant))
        assert [function(found).max().item() for function in FUNCTIONS] == [0, 0, 0]


@pytest.mark.parametrize(("centered", "least"), [(True, 4), (False, 2)])
def test_correction_needs_a_minimum_number_of_rows(centered: bool, least: int) -> None:
    for count in range(1 + centered, 7):
        found = covariance_of(table(1, count, 5), centered=centered)
        assert np.isnan(participation_ratio_corrected(found)) == (count < least)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.ones(3), "square"),
        (np.ones((2, 3)), r"square.*give numpy\.cov"),
        (np.array([[np.nan]]), "NaN or infinity"),
        (xr.Dataset({"mean": 0.0}), "not a dataset of mean"),
    ],
)
def test_invalid_inputs_are_refused(wrong: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        participation_ratio(wrong)
    with pytest.raises(DataError):
        participation_ratio_corrected(wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"variance": ()},
        {"variance": (0.0,)},
        {"variance": (95,)},
        {"variance": 0.9},
        {"variance": ("0.9",)},
        {"spectrum": -1},
        {"spatial": "x"},
    ],
    ids=repr,
)
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Dimensionality(**options)


class TestInAnAnalysis:
    def net(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(96, 3),
        )  # fmt: skip

    def batches(self, samples: int = 120) -> Any:
        images = torch.rand(samples, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        return list(zip(images.split(50), (torch.arange(samples) % 3).split(50), strict=True))

    def maps(self, samples: int = 120) -> dict[str, np.ndarray]:
        model, found, images = self.net(), {}, torch.cat([x for x, _ in self.batches(samples)])
        for number, layer in enumerate(model):
            images = layer(images)
            if isinstance(layer, nn.ReLU):
                found[str(number)] = images.detach().double().numpy()
        return found

    @pytest.mark.parametrize("centered", [True, False])
    @pytest.mark.parametrize("spatial", ["mean", "positions", "flatten"])
    def test_equals_numpy_for_each_meaning_of_dimension(self, spatial: Any, centered: bool) -> None:
        metric = Dimensionality(spatial=spatial, centered=centered, variance=(0.5, 0.9))
        with warnings_of_few_samples(spatial == "flatten"):
            result = analyze(self.net(), self.batches(), metrics=metric, progress=False)
        layers = result["layers"].to_dataset()
        for name, maps in self.maps().items():
            rows = {
                "mean": maps.mean((2, 3)),
                "positions": maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1]),
                "flatten": maps.reshape(len(maps), -1),
            }[spatial]
            matrix = np.cov(rows, rowvar=False) if centered else rows.T @ rows / len(rows)
            values = np.linalg.eigvalsh(matrix)[::-1]
            found = layers.sel(layer=name)
            width = rows.shape[1]
            assert found["n_samples"] == len(rows)
            assert found["n_dimensions"] == width
            assert found["too_few_samples"] == (len(rows) <= width)
            ratio = ratio_of(values)
            assert found["participation_ratio"].item() == pytest.approx(ratio, rel=1e-5)
            assert found["participation_ratio_fraction"].item() == pytest.approx(
                ratio / width, rel=1e-5
            )
            counts = 1 + np.searchsorted(values.cumsum() / values.sum(), (0.5, 0.9))
            assert found["components"].values.tolist() == counts.tolist()
            np.testing.assert_allclose(found["components_fraction"], counts / width)
            known = found["eigenvalue"].values
            known = known[np.isfinite(known)][: len(values)]
            np.testing.assert_allclose(known, values[: len(known)], atol=1e-6 * values[0])
            assert found["participation_ratio_corrected_fraction"].item() == pytest.approx(
                found["participation_ratio_corrected"].item() / width
            )

    def test_too_few_samples_are_reported(self) -> None:
        with pytest.warns(
            ProbekitWarning,
            match=r"6 samples are too few .* of 3; .*see participation_ratio_corrected",
        ):
            result = analyze(self.net(), self.batches(6), metrics="dimensionality", progress=False)
        assert result["layers"]["too_few_samples"].values.tolist() == [False, True]
        with pytest.warns(
            ProbekitWarning, match="fewer than 4, participation_ratio_corrected is NaN"
        ):
            analyze(self.net(), self.batches(3), metrics="dimensionality", progress=False)

    def test_spectra_are_bounded_and_padded(self) -> None:
        metric = Dimensionality(spectrum=5)
        result = analyze(self.net(), self.batches(), metrics=metric, progress=False)
        values = result["layers"]["eigenvalue"]
        assert values.sizes["component"] == 5
        assert np.isnan(values[0, 4])
        assert np.isfinite(values[1]).all()

    def test_memory_is_checked_before_the_pass(self) -> None:
        model, seen = self.net(), []
        images, labels = torch.rand(120, 1, 8, 8), torch.arange(120) % 3
        model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        metric = Dimensionality(spatial="flatten", memory=100_000)
        with pytest.raises(OptionError, match=r"120 samples.* allows 97.7 KiB; .*or raise memory"):
            analyze(model, (images, labels), metrics=metric, progress=False)
        assert max(seen) <= 4

    def test_shares_one_pass_with_selectivity(self) -> None:
        model, calls = self.net(), []
        model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        both = ["selectivity", "dimensionality"]
        result = analyze(model, self.batches(), metrics=both, progress=False)
        assert [call for call in calls if call > 4] == [50, 50, 20]
        for name in both:
            alone = analyze(self.net(), self.batches(), metrics=name, progress=False)
            for variable, values in alone["layers"].data_vars.items():
                xr.testing.assert_identical(values, result["layers"][variable])

    def test_recordings_give_the_same_numbers(self) -> None:
        expected = analyze(self.net(), self.batches(), metrics="dimensionality", progress=False)
        recording = record(self.net(), self.batches(), progress=False)
        for table_of in (recording, recording.chunk(sample=32)):
            for function in FUNCTIONS:
                found = function(table_of)
                assert found["layer"].values.tolist() == ["1", "3"]
                wanted = expected["layers"][found.name]
                np.testing.assert_allclose(found.transpose(*wanted.dims), wanted, rtol=1e-6)
        one = recording.isel(unit=recording["layer"].values == "3")
        assert participation_ratio(one).item() == pytest.approx(
            expected["layers"]["participation_ratio"].values[1], rel=1e-6
        )


def warnings_of_few_samples(expected: bool) -> Any:
    from contextlib import nullcontext

    return pytest.warns(ProbekitWarning, match="too few") if expected else nullcontext()
