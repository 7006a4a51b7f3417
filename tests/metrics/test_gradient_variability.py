"""Gradient variability: known gradients, captum, exact against probe estimates, and warnings."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from captum.attr import NeuronGradient
from torch import Tensor, nn
from tqdm import std

import probekit as pk
from probekit.capture.gradients.norms import mean_chi
from probekit.errors import LayerError, ModelError, OptionError, ProbekitWarning
from probekit.metrics.gradient_variability import across_units, over_samples
from probekit.statistics.gradient_moments import GradientMoments


class Quadratic(nn.Module):
    """Activations a_u ||x||^2 / 2, whose gradients have the norms a_u ||x||."""

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.slopes = nn.Parameter(slopes)
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1).square().sum(1, keepdim=True) / 2 * self.slopes)


def units_of(model: Any, data: Any, **options: Any) -> xr.Dataset:
    metric = pk.GradientVariability(**options)
    return pk.analyze(model, data, ["out"], metric, batch_size=512)["units"].to_dataset()


@pytest.mark.parametrize(
    ("metric", "updates"),
    [("selectivity", [20, 20]), (pk.GradientVariability(method="exact"), [2, 18, 20])],
)
def test_the_time_left_is_known_after_a_few_gradients(
    metric: Any, updates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bar(std.tqdm):  # type: ignore[misc]  # tqdm has no types
        def update(self, n: float | None = 1) -> None:
            found.append(n)
            super().update(n)

    found: list[float | None] = []

    def open_bar(*, progress: bool, **options: Any) -> Any:
        return Bar(file=io.StringIO(), **options)

    monkeypatch.setattr("probekit.capture.stream.progress_bar", open_bar)
    model, data = (
        Quadratic(torch.tensor([0.5, 3.0])),
        (torch.rand(40, 1, 4, 4), torch.arange(40) % 2),
    )
    pk.analyze(model, data, ["out"], metric, batch_size=20)
    assert found == updates


@pytest.mark.parametrize("probes", [1, 2, 8])
def test_probes_are_corrected_for_estimation_noise(probes: int) -> None:
    slopes = torch.tensor([0.5, 3.0])
    images = torch.rand(6000, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    images *= torch.linspace(0.2, 2, 6000)[:, None, None, None]
    data = (images, torch.arange(6000) % 2)
    true = images.flatten(1).double().norm(dim=1)
    cv = float(true.std() / true.mean())
    found = units_of(Quadratic(slopes), data, method="probes", probes=probes)
    for unit, slope in enumerate(slopes.double()):
        one = found.isel(unit=unit)
        mean = float(slope * true.mean())
        assert abs(one["gradient_norm_mean"] - mean) < 4 * one["gradient_norm_probe_error"]
        assert one["gradient_norm_probe_error"] < one["gradient_norm_sem"] < 0.02 * mean
        assert abs(one["gradient_norm_cv"] - cv) < 4 * one["gradient_norm_cv_sem"]
        expected = ((1 / mean_chi(probes) ** 2 - 1) * (slope * true).square().mean() / 6000) ** 0.5
        np.testing.assert_allclose(one["gradient_norm_probe_error"], expected, rtol=0.1)
        plain = one["gradient_norm_sem"] * 6000**0.5 / one["gradient_norm_mean"]
        assert plain > cv + 6 * one["gradient_norm_cv_sem"], "uncorrected, it would be seen"


def moments_of(norms: Tensor, squares: Tensor) -> xr.Dataset:
    moments = GradientMoments()
    moments.update(torch.cat([norms, squares], 1), torch.zeros(len(norms), dtype=torch.int64))
    return moments.to_xarray()


@pytest.mark.parametrize("probes", [2, None])
def test_estimates_are_unbiased_and_error_bars_cover(probes: int | None) -> None:
    """2,000 repetitions (units) of a study of 40 samples whose norms are gamma distributed."""
    random = np.random.default_rng(0)
    norms = random.gamma(4, 0.5, (40, 2000))
    squares = norms**2
    if probes is not None:
        squares = squares * random.chisquare(probes, norms.shape) / probes
        norms = np.sqrt(squares) / mean_chi(probes)
    found = over_samples(moments_of(torch.from_numpy(norms), torch.from_numpy(squares)))
    mean, sem = found["gradient_norm_mean"], found["gradient_norm_sem"]
    assert abs(mean.mean() - 2) < 4 * mean.std() / 2000**0.5
    variance = found["gradient_norm_std"] ** 2
    assert abs(variance.mean() - 1) < 4 * variance.std() / 2000**0.5
    assert 0.92 < (abs(mean - 2) < 1.96 * sem).mean() < 0.97
    wide = 1.96 * found["gradient_norm_cv_sem"]
    assert 0.85 < (abs(found["gradient_norm_cv"] - 0.5) < wide).mean() < 0.98


def test_exact_gradients_equal_those_of_numpy() -> None:
    norms = torch.rand(9, 4, dtype=torch.float64) + 0.1
    found = over_samples(moments_of(norms, norms**2))
    np.testing.assert_allclose(found["gradient_norm_mean"], norms.mean(0))
    np.testing.assert_allclose(found["gradient_norm_std"], norms.std(0))
    np.testing.assert_allclose(found["gradient_norm_cv"], norms.std(0) / norms.mean(0))
    np.testing.assert_allclose(found["gradient_norm_sem"], norms.std(0) / 3)
    assert (found["gradient_norm_probe_error"] == 0).all()
    layer = across_units(found)
    means = norms.mean(0)
    np.testing.assert_allclose(layer["gradient_norm_cv_across_units"], means.std() / means.mean())


def test_dead_units_are_left_out_and_counted() -> None:
    norms = torch.rand(9, 5, dtype=torch.float64) + 0.1
    norms[:, 2] = 0
    found = over_samples(moments_of(norms, norms**2))
    assert found["gradient_dead"].values.tolist() == [False, False, True, False, False]
    assert found["gradient_norm_mean"][2] == 0
    assert np.isnan(found["gradient_norm_cv"][2])
    layer = across_units(found)
    means = norms[:, [0, 1, 3, 4]].mean(0)
    np.testing.assert_allclose(layer["gradient_norm_cv_across_units"], means.std() / means.mean())
    assert (int(layer["gradient_dead_units"]), int(layer["gradient_units"])) == (1, 5)


def of_captum(network: nn.Module, layer: str, unit: int, images: Tensor) -> np.ndarray[Any, Any]:
    gradient = NeuronGradient(network, network.get_submodule(layer)).attribute(
        images.clone().requires_grad_(),
        lambda output: output[:, unit].reshape(len(output), -1).mean(1),
    )
    return gradient.detach().flatten(1).double().norm(dim=1).numpy()


@pytest.fixture
def data(labeled: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return labeled


def test_a_whole_analysis_agrees_with_captum(
    model: pk.ImageModel, data: tuple[Tensor, Tensor]
) -> None:
    reference = copy.deepcopy(model.module).eval()
    metrics = ["selectivity", pk.GradientVariability(method="exact")]
    result = pk.analyze(model, data, metrics=metrics, batch_size=8)
    table = result["units"].to_dataset().to_dataframe().reset_index()
    assert not table["selectivity"].isna().any()
    images = model.normalize(data[0])
    for row in table.drop_duplicates(["layer", "channel"]).itertuples():
        # The images are in [0, 1]. Normalization by a std of 0.5 doubles every derivative.
        norms = 2 * of_captum(reference, row.layer, row.channel, images)
        np.testing.assert_allclose(row.gradient_norm_mean, norms.mean(), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(row.gradient_norm_std, norms.std(ddof=1), rtol=1e-3, atol=1e-6)
        assert row.gradient_samples == 30
    assert model.module.training


@pytest.mark.filterwarnings("ignore:.*probes can measure")
def test_probes_agree_with_the_exact_method(
    model: pk.ImageModel, data: tuple[Tensor, Tensor]
) -> None:
    exact, probed = (
        pk.analyze(model, data, metrics=pk.GradientVariability(method=method, probes=200))
        for method in ("exact", "probes")
    )
    one, other = (result["units"].to_dataset() for result in (exact, probed))
    apart = abs(one["gradient_norm_mean"] - other["gradient_norm_mean"])
    assert (apart <= 4 * other["gradient_norm_probe_error"]).all()
    assert (one["gradient_dead"] == other["gradient_dead"]).all()
    layers = [result["layers"]["gradient_norm_cv_across_units"] for result in (exact, probed)]
    np.testing.assert_allclose(layers[0], layers[1], rtol=0.05)


@pytest.mark.filterwarnings("ignore:.*probes can measure")
@pytest.mark.parametrize("method", ["exact", "probes"])
def test_batches_do_not_matter(
    model: pk.ImageModel, data: tuple[Tensor, Tensor], method: Any
) -> None:
    metric = pk.GradientVariability(method=method, probes=3, samples=20, units=3)
    one, other = (
        pk.analyze(model, data, metrics=metric, batch_size=size)["units"].to_dataset()
        for size in (30, 7)
    )
    for name in ("gradient_norm_mean", "gradient_norm_cv"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4)
    assert (one["gradient_samples"] == other["gradient_samples"]).all()


def test_units_and_samples_are_drawn_by_seed_and_recorded(
    model: pk.ImageModel, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    def told(seed: int) -> tuple[xr.DataTree, dict[str, Any]]:
        metric = pk.GradientVariability(units=3, samples=11, seed=seed)
        result = pk.analyze(model, data, metrics=metric, batch_size=4)
        return result, json.loads(result.attrs["provenance"])["metrics"]["gradient_variability"]

    result, facts = told(0)
    units = result["units"].to_dataset()
    assert facts["units_measured"] == 9
    assert (facts["samples"], facts["seed"], facts["method_used"]) == (11, 0, "exact")
    for layer, chosen in facts["unit_sample"].items():
        own = units.isel(unit=units["layer"].values == layer)
        measured = own["gradient_norm_mean"].notnull().values
        assert own["channel"].values[measured].tolist() == chosen
        assert own["gradient_samples"].values.tolist() == (11 * measured).tolist()
    assert result["layers"]["gradient_units"].values.tolist() == [3, 3, 3]
    assert told(0)[1] == facts
    assert told(1)[1]["unit_sample"] != facts["unit_sample"]
    saved = pk.open_result(pk.save_result(result, tmp_path / "r.nc"))
    assert saved["units"].to_dataset().equals(units)


def test_the_first_samples_of_a_stream_are_used(model: pk.ImageModel) -> None:
    batches = [(torch.rand(4, 1, 8, 8), torch.arange(4) % 3) for _ in range(3)]
    few = pk.analyze(model, batches[:2], metrics=pk.GradientVariability())
    metric = pk.GradientVariability(samples=8)
    same = pk.analyze(model, iter(batches), metrics=metric)
    xr.testing.assert_allclose(few["units"].to_dataset(), same["units"].to_dataset())


def test_a_subset_of_layers_can_be_measured(
    model: pk.ImageModel, data: tuple[Tensor, Tensor]
) -> None:
    metric = pk.GradientVariability(layers="7", units=4)
    result = pk.analyze(model, data, metrics=["selectivity", metric])
    units = result["units"].to_dataset()
    measured = units["gradient_norm_mean"].notnull()
    assert set(units["layer"].values[measured]) == {"7"}
    assert not units["selectivity"].isnull().any()
    assert result["layers"]["gradient_units"].values.tolist() == [0, 0, 4]


@pytest.mark.filterwarnings("ignore:.*probes can measure")
@pytest.mark.parametrize(
    ("probes", "method"), [(14, "probes"), (15, "exact"), (1, "probes"), (400, "exact")]
)
def test_the_default_method_is_the_one_with_fewer_passes(
    model: pk.ImageModel, data: tuple[Tensor, Tensor], probes: int, method: str
) -> None:
    metric = pk.GradientVariability(probes=probes)
    result = pk.analyze(model, data, metrics=metric)
    facts = json.loads(result.attrs["provenance"])["metrics"]["gradient_variability"]
    assert (facts["method"], facts["method_used"]) == ("auto", method)


@pytest.mark.filterwarnings("ignore:the values of 1 depend:probekit.errors.ProbekitWarning")
def test_dependence_between_samples_is_refused(data: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Sigmoid())
    for method in ("exact", "probes"):
        with pytest.raises(ModelError, match="'0' uses the mean and variance of the batch"):
            pk.analyze(net, data, ["1"], pk.GradientVariability(method=method))


def test_an_operation_without_forward_mode_is_named(data: tuple[Tensor, Tensor]) -> None:
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, x.flip(-1) + 1)

    net = nn.Sequential(Distances(), nn.Sigmoid())
    with pytest.raises(ModelError, match=r"_cdist_forward in '0' \(Distances\)"):
        pk.analyze(net, data, ["1"], pk.GradientVariability(method="probes"))
    pk.analyze(net, data, ["1"], pk.GradientVariability(method="exact", samples=3))


def test_noise_that_hides_the_variability_is_reported() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 30), nn.Identity())
    data = (torch.rand(12, 1, 2, 2), torch.arange(12) % 2)
    with pytest.warns(ProbekitWarning, match="units vary less .* than 2 probes can measure"):
        pk.analyze(net, data, ["2"], pk.GradientVariability(method="probes", probes=2))


def test_a_single_sample_is_reported() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Identity())
    data = (torch.rand(6, 1, 2, 2), torch.arange(6) % 2)
    with pytest.warns(ProbekitWarning, match="3 units have gradients of only one sample"):
        pk.analyze(net, data, ["2"], pk.GradientVariability(samples=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "fast"}, "method must be 'auto', 'exact' or 'probes', not 'fast'"),
        ({"probes": 0}, "probes must be a positive integer, not 0"),
        ({"memory": 0.5}, "memory must be a positive integer, not 0.5"),
        ({"units": 0}, "units must be a positive integer, not 0"),
        ({"samples": -3}, "samples must be a positive integer, not -3"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        pk.GradientVariability(**options)


def test_a_layer_that_is_not_analyzed_is_refused(
    model: pk.ImageModel, data: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(LayerError, match="requested for layer '3', which is not analyzed"):
        pk.analyze(model, data, metrics=pk.GradientVariability(layers=["2", "3"]))


def test_the_metric_is_available_by_name(model: pk.ImageModel, data: tuple[Tensor, Tensor]) -> None:
    result = pk.analyze(model, data, metrics="gradient_variability")
    assert "gradient_norm_cv_mean" in result.to_dataset()
