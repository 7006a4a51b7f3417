"""Verdicts: each of the five, the correction, and the simulated rate of wrong verdicts."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import xarray as xr

import probekit as pk
from probekit.errors import OptionError
from probekit.replicates.comparisons import compare_means, equivalence, power
from probekit.replicates.trends import page_trend
from probekit.replicates.verdicts import Claim, verdicts

MARGIN = 0.5


def paired(mean: float, spread: float, seeds: int = 8, seed: int = 0) -> tuple[Any, Any]:
    draws = np.random.default_rng(seed)
    noise = draws.normal(size=seeds)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    base = draws.normal(0, 3, seeds)
    one, other = (xr.DataArray(part, dims="seed") for part in (base + mean + spread * noise, base))
    return one, other


def claim(says: Any, mean: float, spread: float, margin: Any = MARGIN, name: str = "a") -> Claim:
    one, other = paired(mean, spread)
    test = None if says == "no change" else compare_means(one, other, paired=True)
    same = None if margin is None else equivalence(one, other, margin, paired=True)
    return Claim(name, says, test, same)


@pytest.mark.parametrize(
    ("says", "mean", "spread", "margin", "expected"),
    [
        ("increase", 1.0, 0.3, MARGIN, "supported"),
        ("increase", 1.0, 0.3, None, "supported"),
        ("decrease", 1.0, 0.3, MARGIN, "contradicted"),
        ("decrease", -1.0, 0.3, MARGIN, "supported"),
        ("increase", 0.0, 0.3, MARGIN, "equivalent"),
        ("increase", 0.2, 0.05, MARGIN, "equivalent"),
        ("increase", 0.2, 0.05, None, "supported"),
        ("increase", 0.0, 3.0, MARGIN, "undecided"),
        ("increase", 0.0, 0.3, None, "undecided"),
        ("no change", 0.0, 0.3, MARGIN, "supported"),
        ("no change", 1.0, 0.3, MARGIN, "contradicted"),
        ("no change", -1.0, 0.3, MARGIN, "contradicted"),
        ("no change", -1.0, 0.3, (-MARGIN, np.inf), "contradicted"),
        ("no change", 1.0, 0.3, (-MARGIN, np.inf), "supported"),
        ("no change", -0.3, 1.0, (-MARGIN, np.inf), "undecided"),
        ("increase", 0.5, 0.0, MARGIN, "not comparable"),
    ],
)
def test_each_verdict_is_given(
    says: Any, mean: float, spread: float, margin: Any, expected: str
) -> None:
    found = verdicts([claim(says, mean, spread, margin)])
    assert found["verdict"].item() == expected
    assert found["estimate"].item() == pytest.approx(mean, abs=1e-9)


def test_a_trend_gives_a_verdict() -> None:
    draws = np.random.default_rng(0)
    values = xr.DataArray(draws.normal(size=(8, 5)) + np.arange(5), dims=("seed", "alpha"))
    rising = Claim("up", "increase", page_trend(values))
    falling = Claim("down", "decrease", page_trend(values))
    found = pk.verdicts([rising, falling])
    assert found["verdict"].values.tolist() == ["supported", "contradicted"]
    assert found["count"].values.tolist() == [8, 8]
    assert (found["power"] > 0.7).all()


def test_a_claim_without_a_test_is_not_comparable_and_does_not_count() -> None:
    alone = verdicts([claim("increase", 1.0, 0.9)])
    beside = verdicts([claim("increase", 1.0, 0.9), Claim("b", "decrease")])
    assert beside["verdict"].values[1] == "not comparable"
    assert float(beside["p_change_adjusted"][0]) == float(alone["p_change_adjusted"][0])


def test_one_hypothesis_per_claim_gives_holms_correction() -> None:
    claims = [
        claim("increase", mean, 1.0, None, str(number))
        for number, mean in enumerate((0.4, 2.0, 0.9, 1.3))
    ]
    found = verdicts(claims)
    np.testing.assert_allclose(found["p_change_adjusted"], pk.adjust_p_values(found["p_change"]))


def test_with_two_hypotheses_the_factor_is_the_number_of_open_claims() -> None:
    # Step-down: the smallest p first, multiplied by the number of claims with a remaining hypothesis.
    claims = [claim("increase", 0.2, 0.05, name="a"), claim("increase", 0.9, 0.9, name="b")]
    found = verdicts(claims)
    p = {
        (name, kind): float(found[f"p_{kind}"].sel(claim=name))
        for name, kind in product("ab", ("change", "equivalence"))
    }
    order = sorted(p, key=lambda key: p[key])
    assert [key[0] for key in order[:2]] == ["a", "a"]
    expected, highest = {}, 0.0
    for key, factor in zip(order, (2, 2, 1, 1), strict=True):
        highest = max(highest, min(1.0, factor * p[key]))
        expected[key] = highest
    for (name, kind), value in expected.items():
        assert float(found[f"p_{kind}_adjusted"].sel(claim=name)) == pytest.approx(value)


def test_the_power_refers_to_the_margin_at_the_corrected_level() -> None:
    claims = [claim("increase", 0.1, 1.0, name=name) for name in "abcd"]
    found = verdicts(claims)
    expected = power(1 / np.sqrt(8), 7, MARGIN, level=1 - 0.05 / 4)
    np.testing.assert_allclose(found["power"], expected)
    assert np.isnan(verdicts([claim("increase", 0.1, 1.0, None)])["power"])


@pytest.mark.parametrize("true", [0.0, MARGIN])
def test_wrong_verdicts_on_several_claims_occur_at_most_at_the_nominal_rate(true: float) -> None:
    draws = np.random.default_rng(1)
    wrong = 0
    studies, seeds, number = 300, 5, 4
    base = draws.normal(0, 3, (studies, number, seeds))
    values = base + true + draws.normal(0, 0.4, base.shape)
    one, other = (xr.DataArray(part, dims=("study", "claim", "seed")) for part in (values, base))
    test = compare_means(one, other, paired=True)
    same = equivalence(one, other, MARGIN, paired=True)
    false = {"supported", "contradicted"} if true == 0 else {"equivalent", "contradicted"}
    for study in range(studies):
        parts = [
            Claim(str(k), "increase", *(t.isel(study=study, claim=k) for t in (test, same)))
            for k in range(number)
        ]
        wrong += bool(false & set(verdicts(parts)["verdict"].values.tolist()))
    assert wrong / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)


TEST = compare_means(*paired(1.0, 0.5), paired=True)
SAME = equivalence(*paired(1.0, 0.5), MARGIN, paired=True)
BAD: list[tuple[Any, str]] = [
    (lambda: Claim("a", "rises", TEST), "says of claim 'a' must be"),  # type: ignore[arg-type]  # wrong on purpose
    (lambda: Claim("a", "no change", TEST, SAME), "cannot show"),
    (lambda: Claim("a", "increase", SAME), "result of compare_means"),
    (lambda: Claim("a", "increase", TEST, TEST), "result of equivalence"),
    (lambda: Claim("a", "increase", TEST.expand_dims(alpha=2)), "choose one with sel"),
    (lambda: verdicts([]), "one or more with different names"),
    (
        lambda: verdicts([Claim("a", "increase"), Claim("a", "decrease")]),
        "one or more with different names",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_invalid_claims_are_refused(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
