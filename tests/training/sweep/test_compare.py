"""Comparison of runs: tables over the coordinates that distinguish them, with each run measured once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import probekit as pk
from probekit.errors import OptionError, OutputError
from probekit.training.sweep.compare import find_runs

QUICK: dict[str, Any] = {
    "epochs": 2, "architecture": "resnet8", "limit": 64, "batch_size": 32, "device": "cpu",
    "progress": False,
}  # fmt: skip
CALLS: list[float] = []


def size(model: pk.ImageModel, *, power: int = 1) -> xr.Dataset:
    CALLS.append(power)
    weight = model.module.fc.weight.detach().double()
    table = xr.Dataset({"size": float((weight.abs() ** power).sum())})
    return table.assign(by_class=("class", weight.sum(1).numpy()))


def nothing(model: pk.ImageModel) -> Any:
    return {"size": 1.0}


def interrupted(model: pk.ImageModel) -> xr.Dataset:
    CALLS.append(0)
    if len(CALLS) == 3:
        raise KeyboardInterrupt
    return xr.Dataset({"size": 1.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sweep"
    pk.sweep("resnet20-digits", [-1, 0], [0, 1], out, **QUICK)
    return out


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLS.clear()


def test_a_sweep_is_measured_over_alpha_and_seed(folder: Path, tmp_path: Path) -> None:
    found = pk.measure_runs(folder, size, tmp_path, progress=False, power=2)
    assert found["size"].dims == ("alpha", "seed")
    assert found["by_class"].dims == ("alpha", "seed", "class")
    for run in find_runs(folder):
        weight = pk.load_model(run.folder).module.fc.weight.detach().double()
        here = found.sel(alpha=run.alpha, seed=run.seed)
        assert float(here["size"]) == pytest.approx(float((weight**2).sum()), abs=1e-12)
    assert '"power": 2' in found.attrs["provenance"]


def test_a_run_is_measured_once_per_option(folder: Path, tmp_path: Path) -> None:
    first = pk.measure_runs(folder, size, tmp_path, progress=False)
    again = pk.measure_runs(folder, size, tmp_path, progress=False)
    assert len(CALLS) == 4
    assert first.equals(again)
    pk.measure_runs(folder, size, tmp_path, progress=False, power=3)
    assert CALLS[4:] == [3] * 4


def test_an_interrupted_measurement_resumes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pk.measure_runs(folder, interrupted, tmp_path, progress=False)
    assert len(list(tmp_path.glob("interrupted-*.nc"))) == 2
    pk.measure_runs(folder, interrupted, tmp_path, progress=False)
    assert len(CALLS) == 5
    assert not list(tmp_path.glob(".draft*"))


def test_another_function_of_the_same_name_is_a_different_measure(
    folder: Path, tmp_path: Path
) -> None:
    first = pk.measure_runs(folder, size, tmp_path, progress=False)

    def other(model: pk.ImageModel) -> xr.Dataset:
        return xr.Dataset({"size": 7.0})

    other.__name__ = "size"
    found = pk.measure_runs(folder, other, tmp_path, progress=False)
    assert (found["size"] == 7).all()
    assert not (first["size"] == 7).any()


def test_variants_of_folders_are_an_axis(tmp_path: Path) -> None:
    for variant, schedule in (("plain", "0"), ("late", "0*1 -1")):
        for seed in (0, 1):
            where = tmp_path / variant / f"seed_{seed}"
            pk.train("resnet20-digits", 0.0, seed, where, alpha_schedule=schedule, **QUICK)
    found = pk.run_outcomes(tmp_path)
    assert found["test_accuracy"].dims == ("variant", "seed")
    assert set(found["variant"].values) == {"plain", "late"}
    history = pk.training_history(tmp_path)
    assert history["alpha_of_epoch"].sel(variant="late", seed=0).values.tolist() == [0, -1]
    assert np.isfinite(history["selectivity"].values).all()


def test_outcomes_equal_those_of_the_sweep_table(folder: Path) -> None:
    found, table = pk.run_outcomes(folder), xr.load_dataset(folder / "sweep.nc", engine="h5netcdf")
    for name in ("test_accuracy", "selectivity_mean", "selectivity"):
        np.testing.assert_allclose(found[name].transpose(*table[name].dims), table[name])
    assert found["layer"].values.tolist() == table["layer"].values.tolist()


def test_history_equals_the_logs(folder: Path) -> None:
    history = pk.training_history(folder)
    for run in find_runs(folder):
        here = history.sel(alpha=run.alpha, seed=run.seed)
        for name in ("loss", "validation_accuracy", "selectivity_mean"):
            np.testing.assert_allclose(here[name], run.log[name])
        layer = history["layer"].values[2]
        expected = run.log[f"selectivity/{layer}"]
        np.testing.assert_allclose(here["selectivity"].sel(layer=layer), expected)


def test_invalid_arguments_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no finished training run"):
        find_runs(tmp_path)
    with pytest.raises(OptionError, match="options of size must be plain values"):
        pk.measure_runs(folder, size, tmp_path, progress=False, power=object())
    with pytest.raises(OptionError, match="returns an xarray Dataset, not dict"):
        pk.measure_runs(folder, nothing, tmp_path, progress=False)


class Power:
    def __init__(self, power: int) -> None:
        self.power = power

    def __call__(self, model: pk.ImageModel) -> xr.Dataset:
        return size(model, power=self.power)


def nested(power: int) -> Any:
    def measure(model: pk.ImageModel) -> xr.Dataset:
        return size(model, power=power)

    return measure


MEASURES = {
    "object": Power,
    "partial": lambda power: partial(size, power=power),
    "nested function": nested,
    "lambda": lambda power: lambda model: size(model, power=power),
}


@pytest.mark.parametrize("kind", MEASURES)
def test_measures_without_a_name_are_distinguished_by_their_values(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    expected = pk.measure_runs(folder, size, tmp_path / "named", progress=False, power=2)["size"]
    CALLS.clear()
    for power in (1, 2, 2):
        measure = MEASURES[kind](power)
        found = pk.measure_runs(folder, measure, tmp_path / "store", progress=False)["size"]
    assert CALLS == [1] * 4 + [2] * 4
    assert np.array_equal(found, expected)


def test_runs_that_differ_in_more_than_alpha_and_seed_are_listed(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 1}
    pk.train("resnet20-digits", 0.0, 0, tmp_path / "a", **options)
    pk.train("resnet20-digits", 0.0, 1, tmp_path / "b", **options)
    assert pk.run_outcomes(tmp_path)["test_accuracy"].dims == ("alpha", "seed")
    pk.train("resnet20-digits", -1.0, 0, tmp_path / "c", **options, learning_rate=0.01)
    found = pk.run_outcomes(tmp_path)
    assert found["test_accuracy"].dims == ("run",)
    assert found["run"].values.tolist() == ["a", "b", "c"]
    assert found["alpha"].values.tolist() == [0.0, 0.0, -1.0]
