"""Verdicts on claims that were fixed in advance, corrected for the number of claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr

from probekit.checks import number, one_of
from probekit.errors import OptionError
from probekit.replicates.comparisons import equivalence_power, power
from probekit.replicates.intervals import Array
from probekit.replicates.trends import trend_power
from probekit.results.labels import strings

Says: TypeAlias = Literal["increase", "decrease", "no change"]
Verdict: TypeAlias = Literal[
    "supported", "contradicted", "equivalent", "undecided", "not comparable"
]
_NAN = float("nan")


@dataclass(frozen=True)
class Claim:
    """A claim about a quantity, with its tests.

    Attributes:
        name: A short name.
        says: `"increase"` or `"decrease"`: the quantity rises or falls; `"no change"`: it changes by
            less than the margin of `equivalence`. An infinite bound leaves one direction unconstrained
            (for example, "no cost" is a margin such as `(-0.005, inf)` on accuracy).
        test: For an increase or decrease, the result of `compare_means` or `page_trend`, with one
            number per variable; select one comparison with `sel`.
        equivalence: The result of `equivalence`. Required for `"no change"`. Optional for an increase
            or decrease, on the same values: it can show that there is no relevant change, and its
            margin is the change for which the power is computed.

    A claim without its test is not comparable, because these networks do not provide its quantity.

    Example:
        >>> from probekit.replicates.comparisons import compare_means
        >>> low = xr.DataArray([0.11, 0.12, 0.10, 0.13], dims="seed")
        >>> usual = xr.DataArray([0.31, 0.30, 0.32, 0.34], dims="seed")
        >>> claim = Claim("A1", "decrease", compare_means(low, usual, paired=True))
        >>> verdicts([claim])["verdict"].values.tolist()
        ['supported']
    """

    name: str
    says: Says
    test: xr.Dataset | None = None
    equivalence: xr.Dataset | None = None

    def __post_init__(self) -> None:
        one_of(f"says of claim {self.name!r}", self.says, get_args(Says))
        if self.says == "no change" and self.test is not None:
            raise OptionError(
                f"claim {self.name!r} says 'no change', which a test of a difference cannot show; "
                "give the result of equivalence() as equivalence"
            )
        for what, table, found in (
            ("test", self.test, "compare_means() or page_trend()"),
            ("equivalence", self.equivalence, "equivalence()"),
        ):
            if table is None:
                continue
            if "p" not in table or ("margin_low" in table) != (what == "equivalence"):
                raise OptionError(f"the {what} of claim {self.name!r} is a result of {found}")
            if table["p"].ndim:
                raise OptionError(
                    f"the {what} of claim {self.name!r} has comparisons over {table['p'].dims}; "
                    "choose one with sel()"
                )


def verdicts(claims: Sequence[Claim], *, level: float = 0.95) -> xr.Dataset:
    """Computes the verdict on each claim, corrected for the number of claims.

    The probability of any wrong verdict "supported", "contradicted" or "equivalent" is at most
    1 - level, under any dependence between claims. A claim has up to two hypotheses to reject (no
    change; a change beyond the margin), of which at most one is true. Holm's factor is therefore the
    number of claims that still have a hypothesis to reject (Shaffer).

    - "supported": an increase or decrease as claimed; or, for a claim of "no change", a change shown
      to be within the margin.
    - "contradicted": an increase or decrease in the opposite direction; or, for a claim of "no
      change", a change shown to be beyond the margin.
    - "equivalent": an increase or decrease was claimed, but the change was shown to be within the
      margin, whether or not it differs from zero.
    - "undecided": none of these. See `power`.
    - "not comparable": no test, or too few replicates for one.

    Args:
        claims: All claims of one family, fixed before seeing the data.
        level: 1 minus the probability of any wrong verdict.

    Returns:
        Over `claim`: `verdict` and `says`; `estimate`, a difference or the mean rank correlation of a
        trend, and the uncorrected interval `low` to `high` of a difference; the p-values `p_change`, of
        the hypothesis of no change (for a claim of "no change": of no change beyond the margin), and
        `p_equivalence`, of the hypothesis of a change beyond the margin, and both as `..._adjusted`;
        `margin_low`, `margin_high` and `count`; and `power`, at the level (1 - level) / number of
        claims: the probability of detecting a change of the margin's size, a trend of its `effect`, or,
        for "no change", of showing equivalence if there is no change. NaN where a value does not apply.

    Raises:
        OptionError: There are no claims, or two have the same name.

    Source:
        Holm 1979 (Scandinavian Journal of Statistics 6); Shaffer 1986 (Journal of the American
        Statistical Association 81).

    Example:
        >>> from probekit.replicates.comparisons import compare_means
        >>> low = xr.DataArray([0.11, 0.12, 0.10, 0.13], dims="seed")  # selectivity of four networks
        >>> usual = xr.DataArray([0.31, 0.30, 0.32, 0.34], dims="seed")
        >>> lower = compare_means(low, usual, paired=True)
        >>> found = verdicts([Claim("it falls", "decrease", lower), Claim("it rises", "increase", lower)])
        >>> found["verdict"].values.tolist()
        ['supported', 'contradicted']
    """
    names = [claim.name for claim in claims]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"claims must be one or more with different names, not {names}")
    number("level", level, above=0.5, below=1)
    size = 1 - level
    p = np.array([_p_values(claim) for claim in claims])
    adjusted = _adjusted(p)
    rows = [_numbers(claim, size / len(claims)) for claim in claims]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for place, name in enumerate(("p_change", "p_equivalence")):
        columns |= {name: p[:, place], f"{name}_adjusted": adjusted[:, place]}
    found = [
        _verdict(claim, change, same, estimate, size)
        for claim, (change, same), estimate in zip(
            claims, adjusted.tolist(), columns["estimate"].tolist(), strict=True
        )
    ]
    columns = {"verdict": strings(found), "says": strings(claim.says for claim in claims)} | columns
    return xr.Dataset(
        {name: ("claim", column) for name, column in columns.items()},
        coords={"claim": strings(names)},
    )


def _verdict(claim: Claim, change: float, same: float, estimate: float, size: float) -> Verdict:
    """The verdict from the two adjusted p-values of a claim."""
    if np.isnan(change) and np.isnan(same):
        return "not comparable"
    if same <= size:
        return "supported" if claim.says == "no change" else "equivalent"
    if change <= size:
        as_claimed = claim.says == ("increase" if estimate > 0 else "decrease")
        return "supported" if as_claimed else "contradicted"
    return "undecided"


def _p_values(claim: Claim) -> tuple[float, float]:
    """The p-values of no change (or none beyond the margin) and of a change beyond the margin."""
    same = _NAN if claim.equivalence is None else float(claim.equivalence["p"])
    if claim.says != "no change":
        return _NAN if claim.test is None else float(claim.test["p"]), same
    if claim.equivalence is None:
        return _NAN, _NAN
    sides = [name for name in ("low", "high") if np.isfinite(claim.equivalence[f"margin_{name}"])]
    beyond = min(1 - float(claim.equivalence[f"p_{name}"]) for name in sides)
    return min(1.0, len(sides) * beyond), same


def _adjusted(p: Array) -> Array:
    """Holm's step-down procedure over hypotheses of claims; at most one per claim is true."""
    result = np.full(p.shape, np.nan)
    left = (~np.isnan(p)).sum(1)
    highest = 0.0
    for place in np.argsort(p, axis=None, kind="stable")[: int(left.sum())]:
        claim, hypothesis = np.unravel_index(place, p.shape)
        highest = max(highest, min(1.0, float((left > 0).sum() * p[claim, hypothesis])))
        result[claim, hypothesis] = highest
        left[claim] -= 1
    return result


def _numbers(claim: Claim, size: float) -> Mapping[str, float]:
    """The estimate of a claim with its interval, margin, number of replicates and power."""
    test, same = claim.test, claim.equivalence
    main = same if claim.says == "no change" else test
    found = dict.fromkeys(("estimate", "low", "high", "margin_low", "margin_high", "power"), _NAN)
    found["count"] = 0 if main is None else int(main["count"])
    if same is not None:
        found |= {name: float(same[name]) for name in ("margin_low", "margin_high")}
    if main is None:
        return found
    if "correlation" in main:
        facts = {name: main.attrs[name] for name in ("conditions", "effect", "alternative")}
        reached = trend_power(int(found["count"]), size=size, **facts)
        return found | {"estimate": float(main["correlation"]), "power": reached}
    found |= {"estimate": float(main["difference"])}
    found |= {name: float(main[name]) for name in ("low", "high")}
    error, df = float(main["error"]), float(main["df"])
    bounds = (found["margin_low"], found["margin_high"])
    if claim.says == "no change":
        found["power"] = float(equivalence_power(error, df, bounds, level=1 - size))
    else:
        matters = bounds[1] if claim.says == "increase" else -bounds[0]
        found["power"] = float(power(error, df, matters, level=1 - size))
    return found
