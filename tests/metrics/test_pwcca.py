"""PWCCA compared with analytically known cases, and its invariances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA

import probekit as pk
from probekit.errors import DataError, OptionError, ProbekitWarning


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def orthonormal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Centered, mutually orthogonal columns of unit length."""
    table = normal(rows, columns, seed=seed)
    return np.linalg.qr(table - table.mean(0))[0]


def distance(*given: Any, **options: Any) -> float:
    return pk.pwcca_distance(*given, **options).item()


@given(
    seed=st.integers(0, 50),
    units=st.integers(1, 6),
    weights=st.sampled_from(["fewer", "first", "second", "uniform"]),
)
@settings(max_examples=30, deadline=None)
def test_an_invertible_linear_map_has_zero_distance(seed: int, units: int, weights: Any) -> None:
    x = normal(120, units, seed=seed)
    turned = x @ normal(units, units, seed=seed + 1) + normal(units, seed=seed + 2)
    assert distance(x, turned, weights=weights) == pytest.approx(0, abs=1e-9)


@given(seed=st.integers(0, 50), scale=st.floats(1e-4, 1e4))
@settings(max_examples=30, deadline=None)
def test_a_map_of_the_unweighted_side_changes_nothing(seed: int, scale: float) -> None:
    x, y = normal(200, 4, seed=seed), normal(200, 6, seed=seed + 100)
    y[:, :3] += x[:, :3]
    turn = scale * normal(6, 6, seed=seed + 1)
    assert distance(x, y, weights="first") == pytest.approx(
        distance(x, y @ turn + 5, weights="first"), abs=1e-8
    )
    both = distance(x @ normal(4, 4, seed=seed + 2), y @ turn, weights="uniform")
    assert distance(x, y, weights="uniform") == pytest.approx(both, abs=1e-8)


def test_an_analytically_known_case() -> None:
    # Orthonormal variates with correlations .9 and .3, observed through units of different scale: unit 0 is
    # 3 h_0 and unit 1 is h_1, so the weights are 3/4 and 1/4.
    base = orthonormal(50, 4)
    h, free = base[:, :2], base[:, 2:]
    rho = np.array([0.9, 0.3])
    y = h * rho + free * np.sqrt(1 - rho**2)
    x = h * np.array([3.0, 1.0])
    assert distance(x, y) == pytest.approx(1 - (0.75 * 0.9 + 0.25 * 0.3), abs=1e-12)
    assert distance(x, y, weights="second") == pytest.approx(1 - 0.6, abs=1e-12)
    assert distance(x, y, weights="uniform") == pytest.approx(1 - 0.6, abs=1e-12)


def test_weights_come_from_the_side_with_fewer_dimensions() -> None:
    base = orthonormal(60, 7)
    h, free, more = base[:, :2], base[:, 2:4], base[:, 4:]
    rho = np.array([0.9, 0.3])
    first = np.hstack([h * rho + free * np.sqrt(1 - rho**2), more])
    second = h * np.array([1.0, 3.0])
    expected = 1 - (0.25 * 0.9 + 0.75 * 0.3)
    assert distance(first, second) == pytest.approx(expected, abs=1e-12)
    assert distance(first, second) == pytest.approx(distance(second, first), abs=1e-12)
    # The else branch of the published code applies the second side's coefficients to the first side's
    # activations, whose number of units differs: it fails or weights by meaningless directions.
    assert distance(first, second) == pytest.approx(
        distance(first, second, weights="second"), abs=1e-12
    )
    assert distance(first, second, weights="first") != pytest.approx(expected, abs=1e-3)


def test_correlations_equal_those_of_scikit_learn() -> None:
    x, y = normal(400, 3), normal(400, 3, seed=1)
    y[:, 0] += x[:, 0]
    y[:, 1] += 0.5 * x[:, 1]
    theirs = CCA(n_components=3, max_iter=5000, tol=1e-12).fit(x, y)
    scores = theirs.transform(x, y)
    rho = [np.corrcoef(scores[0][:, i], scores[1][:, i])[0, 1] for i in range(3)]
    assert distance(x, y, weights="uniform") == pytest.approx(1 - np.mean(rho), abs=1e-5)


def test_unrelated_representations_have_a_large_distance() -> None:
    assert distance(normal(20_000, 4), normal(20_000, 4, seed=1)) > 0.97


def test_dead_and_duplicate_units_are_ignored() -> None:
    x, y = normal(200, 4), normal(200, 4, seed=1)
    more = np.hstack([x, np.zeros((200, 3)), np.full((200, 1), 7.0)])
    assert distance(more, y, weights="first") == pytest.approx(distance(x, y, weights="first"))
    assert np.isnan(distance(np.ones((200, 4)), y))


def recording(table: np.ndarray, layers: list[str]) -> xr.Dataset:
    return xr.Dataset(
        {"activation": (("sample", "unit"), table)},
        coords={"layer": ("unit", np.array(layers, dtype=object)), "sample": np.arange(len(table))},
    )


def test_recordings_are_compared_layer_by_layer() -> None:
    x, y = normal(200, 5), normal(200, 5, seed=1)
    names = ["a", "a", "b", "b", "b"]
    found = pk.pwcca_distance(recording(x, names), recording(y, names))
    assert found["layer"].values.tolist() == ["a", "b"]
    assert float(found[0]) == pytest.approx(distance(x[:, :2], y[:, :2]))
    assert float(found[1]) == pytest.approx(distance(x[:, 2:], y[:, 2:]))
    shifted = recording(y, names).assign_coords(sample=np.arange(200) + 1)
    with pytest.raises(DataError, match=r"different samples \(sample\)"):
        pk.pwcca_distance(recording(x, names), shifted)
    labels = np.arange(200) % 3
    one, other = (
        recording(table, names).assign(label=("sample", own))
        for table, own in ((x, labels), (y, labels[::-1]))
    )
    with pytest.raises(DataError, match=r"different samples \(label\)"):
        pk.pwcca_distance(one, other)
    same = other.assign(label=one["label"])
    np.testing.assert_array_equal(pk.pwcca_distance(one, same), found)


def test_the_ratio_is_one_for_rotations_and_larger_for_others() -> None:
    shared = normal(400, 3)
    plain = [np.hstack([shared, normal(400, 3, seed=i)]) for i in range(3)]
    turned = [x @ np.linalg.qr(normal(6, 6, seed=10 + i))[0] for i, x in enumerate(plain)]
    other = [normal(400, 6, seed=20 + i) for i in range(3)]
    assert pk.pwcca_ratio(turned, plain)["ratio"].item() == pytest.approx(1, abs=0.05)
    found = pk.pwcca_ratio(other, plain)
    assert found["ratio"].item() > 1.4
    assert dict(found["distance"].sizes) == {"replicate": 3, "other": 2}
    assert found["distance"][1, 1].item() == distance(other[1], plain[2])
    assert found["baseline"][2, 0].item() == distance(plain[2], plain[0])
    expected = float(found["distance"].mean() / found["baseline"].mean())
    assert found["ratio"].item() == pytest.approx(expected)
    assert pk.pwcca_ratio(plain, plain)["ratio"].item() == pytest.approx(1)


def test_replicates_with_large_mutual_distances_do_not_count_as_a_change() -> None:
    shared = normal(400, 3)
    plain = [np.hstack([shared, 0.3 * normal(400, 3, seed=i)]) for i in range(3)]
    noisy = [np.hstack([shared, 3.0 * normal(400, 3, seed=9 + i)]) for i in range(3)]
    found = pk.pwcca_ratio(noisy, plain, weights=("first", "uniform"))
    assert found["weights"].values.tolist() == ["first", "uniform"]
    first = found.sel(weights="first")
    assert first["ratio"].item() > 1.5
    within = float(first["within"].mean())
    assert within == pytest.approx(
        np.mean([distance(noisy[i], noisy[j], weights="first") for i in range(3) for j in range(3)
                 if i != j])
    )  # fmt: skip
    expected = float(first["distance"].mean()) / ((float(first["baseline"].mean()) + within) / 2)
    assert first["ratio_within"].item() == pytest.approx(expected)
    assert first["ratio_within"].item() < first["ratio"].item()
    uniform = found.sel(weights="uniform")
    assert uniform["ratio_within"].item() == pytest.approx(1, abs=0.05)
    alone = pk.pwcca_ratio(noisy, plain, weights="uniform")
    assert alone["ratio_within"].item() == pytest.approx(uniform["ratio_within"].item())


def test_several_weights_at_once_equal_separate_calls() -> None:
    x, y = normal(200, 4), normal(200, 3, seed=1)
    found = pk.pwcca_distance(x, y, weights=("fewer", "first", "second", "uniform"))
    for choice in found["weights"].values.tolist():
        assert float(found.sel(weights=choice)) == distance(x, y, weights=choice)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: distance(normal(9, 2), normal(8, 2)), DataError, "they have 9 and 8"),
    (lambda: distance(normal(9), normal(9)), DataError, r"activations must be \(sample, unit\)"),
    (lambda: distance(normal(9, 2) * np.nan, normal(9, 2)), DataError, "NaN"),
    (
        lambda: distance(normal(9, 2), normal(9, 2), weights="mean"),
        OptionError,
        "weights must be",
    ),
    (lambda: pk.pwcca_ratio([normal(9, 2)], [normal(9, 2)]), DataError, "two or more seeds"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_invalid_arguments_are_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_few_samples_are_reported() -> None:
    with pytest.warns(ProbekitWarning, match="10 samples are few for 4 and 4 dimensions"):
        distance(normal(10, 4), normal(10, 4, seed=1))
