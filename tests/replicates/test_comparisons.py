"""Comparisons of means and corrected p-values: against scipy, manual computation, and the null."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import probekit as pk
from probekit.errors import DataError, OptionError
from probekit.replicates.comparisons import compare_means, equivalence, equivalence_power, power


def replicates(*shape: int, seed: int = 0) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=shape)
    return xr.DataArray(values, dims=("alpha", "seed"), coords={"alpha": np.arange(shape[0])})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_bh_equals_scipy_and_holm_is_the_step_down_procedure(p: list[float]) -> None:
    np.testing.assert_allclose(
        pk.adjust_p_values(p, "bh"), stats.false_discovery_control(p), atol=1e-12
    )
    holm = pk.adjust_p_values(p)
    for level in (0.01, 0.05, 0.3):
        rejected = np.zeros(len(p), bool)
        for step, place in enumerate(np.argsort(p, kind="stable")):
            if p[place] * (len(p) - step) > level:
                break
            rejected[place] = True
        assert ((holm <= level) == rejected).all()


def test_missing_p_values_stay_missing_and_do_not_count() -> None:
    found = pk.adjust_p_values(np.array([[0.01, np.nan], [0.02, 0.5]]))
    np.testing.assert_allclose(found, [[0.03, np.nan], [0.04, 0.5]])


def with_seeds(*values: float, first: int = 0) -> xr.DataArray:
    coords = {"seed": np.arange(first, first + len(values))}
    return xr.DataArray(list(values), dims="seed", coords=coords)


def test_unpaired_differences_are_welchs_test() -> None:
    table, base = replicates(4, 3), replicates(1, 5, seed=1)[0] + 1
    found = pk.compare_means(table, base)
    for row in range(4):
        theirs = stats.ttest_ind(table.values[row], base.values, equal_var=False)
        interval = theirs.confidence_interval(0.95)
        assert float(found["p"][row]) == pytest.approx(theirs.pvalue)
        assert float(found["df"][row]) == pytest.approx(theirs.df)
        assert float(found["low"][row]) == pytest.approx(interval.low)
        assert float(found["high"][row]) == pytest.approx(interval.high)
        expected = table.values[row].mean() - base.values.mean()
        assert float(found["difference"][row]) == pytest.approx(expected)
    np.testing.assert_allclose(found["p_adjusted"], pk.adjust_p_values(found["p"]))
    assert found["alpha"].values.tolist() == [0, 1, 2, 3]
    assert found["count"].values.tolist() == [3] * 4


def test_paired_differences_are_students_test_of_the_differences() -> None:
    table, base = replicates(4, 6), replicates(1, 6, seed=1)[0]
    table[2, 3] = np.nan
    found = compare_means(table, base, paired=True)
    for row in range(4):
        keep = ~np.isnan(table.values[row])
        theirs = stats.ttest_rel(table.values[row][keep], base.values[keep])
        assert float(found["p"][row]) == pytest.approx(theirs.pvalue)
        assert float(found["low"][row]) == pytest.approx(theirs.confidence_interval().low)
        assert int(found["count"][row]) == keep.sum()
    each = found["difference_each"]
    np.testing.assert_allclose(each, table.values - base.values)


def test_pairs_are_matched_by_coordinate_not_by_position() -> None:
    one, other = with_seeds(1.0, 2.0, 4.0, 9.0), with_seeds(3.5, 1.5, 1.0, first=0)
    shuffled = other.assign_coords(seed=[2, 1, 0])
    found = compare_means(one, shuffled, paired=True)
    assert found["difference_each"].sel(seed=[0, 1, 2]).values.tolist() == [0.0, 0.5, 0.5]
    assert np.isnan(found["difference_each"].sel(seed=3))
    assert int(found["count"]) == 3
    assert float(found["p"]) == pytest.approx(stats.ttest_rel([1, 2, 4], [1, 1.5, 3.5]).pvalue)


def test_variance_shared_by_seeds_cancels_in_paired_tests() -> None:
    draws = np.random.default_rng(0)
    shared = draws.normal(0, 10, 5)
    one, other = (with_seeds(*(shared + draws.normal(mean, 0.1, 5))) for mean in (1.0, 0.0))
    assert float(compare_means(one, other, paired=True)["p"]) < 0.001
    assert float(compare_means(one, other)["p"]) > 0.5


@pytest.mark.parametrize("paired", [False, True])
def test_identical_means_or_one_replicate_give_no_test(paired: bool) -> None:
    table = replicates(2, 3)
    constant = xr.full_like(table, 0.1)
    for one, other in ((replicates(2, 1), table[0, :1]), (constant, constant[0] * 0.5)):
        found = compare_means(one, other, paired=paired)
        for name in ("p", "p_adjusted", "low", "high", "error"):
            assert np.isnan(found[name].values).all(), name
        assert np.isfinite(found["difference"].values).all()


@pytest.mark.parametrize("large", [1e14, np.inf])
def test_a_comparison_does_not_depend_on_the_scale_of_another(large: float) -> None:
    table, base = replicates(2, 4), replicates(1, 4, seed=1)[0]
    scaled = table.where(table["alpha"] > 0, table * large)
    found = compare_means(scaled, base)["p"].values
    theirs = stats.ttest_ind(table.values[1], base.values, equal_var=False).pvalue
    assert found[1] == pytest.approx(theirs)
    assert np.isnan(found[0]) == np.isinf(large)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_false_positives_occur_at_the_nominal_rate(seeds: int, paired: bool) -> None:
    draws = np.random.default_rng(seeds)
    shared = draws.normal(0, 3, (4000, seeds)) if paired else 0.0
    one, other = (
        xr.DataArray(shared + draws.normal(size=(4000, seeds)), dims=("study", "seed"))
        for _ in range(2)
    )
    found = compare_means(one, other, paired=paired)
    false = float((found["p"] <= 0.05).mean())
    # 4,000 studies: the standard error is 0.0034. Welch's test is conservative for three replicates.
    assert (0.04 if paired or seeds > 3 else 0.025) < false < 0.061
    covered = ((found["low"] <= 0) & (found["high"] >= 0)).mean()
    assert float(covered) == pytest.approx(1 - false, abs=1e-9)


@pytest.mark.parametrize("paired", [False, True])
def test_equivalence_is_two_one_sided_tests(paired: bool) -> None:
    one, other = replicates(3, 6), replicates(1, 6, seed=1)[0] + 0.3
    found = equivalence(one, other, (-1.5, 1.0), paired=paired)
    for row in range(3):
        sides = {}
        for name, bound, alternative in (("p_low", -1.5, "greater"), ("p_high", 1.0, "less")):
            if paired:
                difference = one.values[row] - other.values
                test = stats.ttest_1samp(difference, bound, alternative=alternative)
            else:
                test = stats.ttest_ind(
                    one.values[row], other.values + bound, equal_var=False, alternative=alternative
                )
            sides[name] = test.pvalue
            assert float(found[name][row]) == pytest.approx(test.pvalue)
        assert float(found["p"][row]) == pytest.approx(max(sides.values()))
        inside = float(found["low"][row]) > -1.5 and float(found["high"][row]) < 1.0
        assert inside == (max(sides.values()) < 0.05)
    np.testing.assert_allclose(found["p_adjusted"], pk.adjust_p_values(found["p"]))


def test_non_inferiority_is_one_of_the_two_tests() -> None:
    one, other = replicates(3, 6), replicates(1, 6, seed=1)[0]
    found = equivalence(one, other, (-0.8, np.inf))
    np.testing.assert_allclose(found["p"], found["p_low"])
    assert (found["p_high"] == 0).all()


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("bound", [-0.5, 0.5])
def test_false_equivalence_at_the_margin_is_at_most_nominal(seeds: int, bound: float) -> None:
    draws = np.random.default_rng(seeds)
    shared = draws.normal(0, 3, (4000, seeds))
    other = xr.DataArray(shared, dims=("study", "seed"))
    one = other + bound + draws.normal(0, 0.15, (4000, seeds))
    found = equivalence(one, other, 0.5, paired=True)
    assert 0.035 < float((found["p"] <= 0.05).mean()) < 0.06


def test_a_non_significant_difference_is_not_equivalence() -> None:
    draws = np.random.default_rng(0)
    one, other = (
        xr.DataArray(draws.normal(mean, 1, (2000, 3)), dims=("study", "seed")) for mean in (1, 0)
    )
    different = compare_means(one, other, paired=True)["p"] <= 0.05
    equal = equivalence(one, other, 0.5, paired=True)["p"] <= 0.05
    assert float((~different).mean()) > 0.7
    assert float(equal.mean()) < 0.05


@pytest.mark.parametrize(("seeds", "effect"), [(3, 2.0), (8, 1.0), (20, 0.5)])
def test_power_equals_the_fraction_of_simulated_studies_that_detect_the_effect(
    seeds: int, effect: float
) -> None:
    draws = np.random.default_rng(seeds)
    zero = xr.DataArray(np.zeros(seeds), dims="seed")
    studies = xr.DataArray(draws.normal(effect, 1, (4000, seeds)), dims=("study", "seed"))
    found = float((compare_means(studies, zero, paired=True)["p"] <= 0.05).mean())
    assert float(power(1 / np.sqrt(seeds), seeds - 1, effect)) == pytest.approx(found, abs=0.025)
    noncentral = stats.nct(seeds - 1, effect * np.sqrt(seeds))
    critical = stats.t.ppf(0.975, seeds - 1)
    exact = noncentral.sf(critical) + noncentral.cdf(-critical)
    assert float(power(1 / np.sqrt(seeds), seeds - 1, effect)) == pytest.approx(exact, abs=0.003)


@pytest.mark.parametrize(("seeds", "margin"), [(3, 3.0), (8, 1.0), (20, 0.6)])
def test_power_of_equivalence_equals_the_fraction_of_studies_that_show_it(
    seeds: int, margin: float
) -> None:
    draws = np.random.default_rng(seeds)
    zero = xr.DataArray(np.zeros(seeds), dims="seed")
    studies = xr.DataArray(draws.normal(0, 1, (4000, seeds)), dims=("study", "seed"))
    found = float((equivalence(studies, zero, margin, paired=True)["p"] <= 0.05).mean())
    expected = equivalence_power(1 / np.sqrt(seeds), seeds - 1, (-margin, margin))
    assert float(expected) == pytest.approx(found, abs=0.025)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: pk.adjust_p_values([0.1], "bonferroni"), OptionError, "'holm' or 'bh'"),  # type: ignore[arg-type]  # wrong on purpose
    (lambda: pk.adjust_p_values([1.1]), OptionError, "between 0 and 1"),
    (lambda: compare_means(replicates(2, 3), replicates(2, 3), "run"), OptionError, "no dimension"),
    (lambda: compare_means(replicates(2, 0), replicates(2, 3)), DataError, "no replicates along"),
    (
        lambda: compare_means(with_seeds(1, 2), replicates(1, 2)[0], paired=True),
        OptionError,
        "which only one side has",
    ),
    (
        lambda: compare_means(replicates(2, 3), replicates(1, 2)[0], paired=True),
        OptionError,
        "there are 3 and 2",
    ),
    (
        lambda: compare_means(with_seeds(1, 2), with_seeds(1, 2, first=5), paired=True),
        DataError,
        "none can be paired",
    ),
    (
        lambda: compare_means(
            with_seeds(1, 2), with_seeds(1, 2).assign_coords(seed=[0, 0]), paired=True
        ),
        DataError,
        "occurs twice",
    ),
    (lambda: compare_means(replicates(2, 3), replicates(2, 3), level=95), OptionError, "level"),
    *(
        (
            lambda margin=margin: equivalence(replicates(2, 3), replicates(2, 3), margin),
            OptionError,
            "margin must be a pos",
        )
        for margin in (np.array([0.1, 0.2]), (-1, 2, 3), "wide")
    ),
    (
        lambda: equivalence(replicates(2, 3), replicates(2, 3), -1),
        OptionError,
        "margin must be a pos",
    ),
    (
        lambda: equivalence(replicates(2, 3), replicates(2, 3), (-np.inf, np.inf)),
        OptionError,
        "may be infinite",
    ),
    (lambda: equivalence(replicates(2, 3), replicates(2, 3), (0.1, 1)), OptionError, "margin"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_invalid_comparisons_are_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("alphas", [[-2.0, 0.0, 2.0], [1.0, 0.0, -1.0]])
def test_conditions_with_other_coordinates_are_refused(alphas: list[float]) -> None:
    values = xr.DataArray(
        np.arange(12.0).reshape(3, 4), {"alpha": [-1.0, 0.0, 1.0]}, ("alpha", "seed")
    )
    with pytest.raises(DataError, match="different coordinates"):
        compare_means(values, values.assign_coords(alpha=alphas), paired=True)
