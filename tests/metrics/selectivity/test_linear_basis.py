"""The search over bases finds planted bases, converges, and stays at the floor for noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import probekit as pk
from probekit.errors import DataError, OptionError
from probekit.metrics.selectivity.linear_basis import _held_out

LABELS = np.arange(600) % 6


def selective(noise: float = 0.1, units: int = 12) -> np.ndarray:
    """Non-negative activations of units that respond to one class each."""
    draws = np.random.default_rng(0)
    clean = np.eye(6)[LABELS][:, np.arange(units) % 6]
    return clean * draws.uniform(0.5, 1.5, (600, units)) + noise * draws.random((600, units))


def turn(units: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(units, units)))[0]


def search(table: Any, labels: Any = LABELS, **options: Any) -> xr.Dataset:
    options = {"starts": 2, "steps": 150, "permutations": 0, "held_out": 0.0} | options
    return pk.linear_basis_selectivity(table, labels, **options)


def bound(table: Any, labels: Any = LABELS, **options: Any) -> tuple[float, float]:
    found = search(table, labels, **options)
    return found["selectivity_axes"].item(), found["selectivity_found"].item()


@pytest.mark.parametrize("negative", ["absolute", "rectify", "clip", "shift"])
def test_the_index_on_the_unit_axes_is_the_plain_index(negative: Any) -> None:
    table = selective()
    means = np.stack([table[label == LABELS].mean(0) for label in range(6)], 1)
    expected = pk.class_selectivity(xr.DataArray(means, dims=("unit", "class"))).mean().item()
    assert bound(table, negative=negative, steps=1)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_rotated_basis_is_found(seed: int) -> None:
    planted = bound(selective(), steps=1)[0]
    axes, best = bound(selective() @ turn(12, seed))
    assert planted > 0.85
    assert axes < planted - 0.2
    assert best > planted - 0.05


def test_a_selective_basis_gains_little() -> None:
    axes, best = bound(selective(noise=0.0))
    assert axes == pytest.approx(1, abs=1e-5)
    assert best == pytest.approx(axes, abs=1e-9)


def test_uninformative_units_stay_below_a_planted_basis() -> None:
    blind = np.random.default_rng(0).random((600, 12))
    assert bound(blind)[1] < 0.2


def test_the_bound_is_never_below_the_axes_and_does_not_depend_on_the_scale() -> None:
    table = selective(noise=2.0)
    axes, best = bound(table, steps=50)
    assert best >= axes
    larger = bound(1000 * table, steps=50)
    assert larger == pytest.approx((axes, best), abs=1e-3)


def test_seeds_and_negative_projections_behave_as_documented() -> None:
    table = selective(noise=1.0) @ turn(12)
    assert bound(table, steps=60) == bound(table, steps=60)
    assert bound(table, negative="clip")[1] > bound(table)[1]
    found = pk.linear_basis_selectivity(table, LABELS, negative="clip", steps=5)
    assert found.attrs["negative"] == "clip"
    assert found.attrs["steps"] == 5


def test_each_layer_of_a_recording_is_searched() -> None:
    table = np.hstack([selective(), selective() @ turn(12)])
    recording = xr.Dataset(
        {"activation": (("sample", "unit"), table), "label": ("sample", LABELS)},
        coords={"layer": ("unit", np.array(["a"] * 12 + ["b"] * 12, dtype=object))},
    )
    found = pk.linear_basis_selectivity(recording, steps=40, starts=2, permutations=0, held_out=0)
    assert found["layer"].values.tolist() == ["a", "b"]
    assert float(found["selectivity_bound"][1]) == bound(table[:, 12:], steps=40)[1]


def test_a_planted_basis_holds_on_held_out_samples() -> None:
    found = search(selective() @ turn(12), held_out=0.5)
    assert found["selectivity_held_out"].item() == pytest.approx(
        found["selectivity_found"].item(), abs=0.05
    )
    assert found["selectivity_axes_held_out"].item() < found["selectivity_held_out"].item() - 0.2


def test_noise_stays_at_the_floor_and_does_not_generalize() -> None:
    draws = np.random.default_rng(0)
    blind = draws.normal(size=(60, 12))
    found = search(blind, np.arange(60) % 6, held_out=0.5, permutations=2)
    value, floor = found["selectivity_found"].item(), found["selectivity_floor"].item()
    assert value == pytest.approx(floor, abs=0.05)
    assert found["selectivity_held_out"].item() < value - 0.1


def test_more_steps_improve_the_index_until_convergence() -> None:
    table = selective(noise=1.0) @ turn(12) + 0.3
    few, many = search(table, steps=20, starts=1), search(table, steps=4000, starts=1)
    assert not bool(few["converged"])
    assert bool(many["converged"])
    assert int(many["steps_taken"]) < 4000
    assert many["selectivity_found"].item() > few["selectivity_found"].item()
    twice = search(table, steps=4000, tolerance=3e-4, starts=1)
    assert twice["selectivity_found"].item() == pytest.approx(
        many["selectivity_found"].item(), abs=0.02
    )


def test_the_mean_direction_is_among_the_starts() -> None:
    # When a constant dominates, one axis along it removes it from all other axes.
    table = selective() @ turn(12) + 5.0
    axes, at_axes = bound(table, starts=1, steps=1)
    _, with_mean = bound(table, starts=2, steps=1)
    assert at_axes == pytest.approx(axes, abs=0.01)
    assert with_mean > 2 * axes


def test_a_constant_lowers_the_index_that_is_found() -> None:
    table = selective(noise=1.0)
    assert bound(table + 3.0, steps=200)[1] < bound(table, steps=200)[1]


def test_held_out_samples_are_a_fraction_of_every_class() -> None:
    labels = np.repeat(np.arange(4), [40, 20, 4, 1])
    apart = _held_out(labels, 0.25, np.random.default_rng(0))
    assert np.bincount(labels[apart], minlength=4).tolist() == [10, 5, 1, 0]


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: bound(selective(), negative="keep"), OptionError, "negative must be 'absolute'"),
    (lambda: bound(selective(), steps=0), OptionError, "steps must be a positive integer"),
    (lambda: bound(selective(), penalty=0), OptionError, "penalty must be a positive number"),
    (lambda: bound(selective(), held_out=1.0), OptionError, "number of at least 0 and below 1"),
    (
        lambda: bound(selective(), permutations=-1),
        OptionError,
        "permutations must be a non-negative integer",
    ),
    (lambda: bound(selective(), None), DataError, "needs labels"),
    (lambda: bound(selective(), LABELS[:9]), DataError, r"not \(600, 12\) and \(9,\)"),
    (lambda: bound(selective(), LABELS * 0), DataError, "at least two classes"),
    (lambda: bound(selective() * np.nan), DataError, "NaN"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_invalid_arguments_are_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
