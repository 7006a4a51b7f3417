"""Questions, their cases, and result rows: a ratio, its bound, and whether the bound is met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.timing import Setting, Spread, Times

Form = Literal["cost", "gain"]
Asked = tuple[Form, float | None]


def cost(at_most: float | None = None) -> Asked:
    """The ratio of our time to the other's, with an upper bound."""
    return "cost", at_most


def gain(at_least: float | None = None) -> Asked:
    """The ratio of the other's time to ours (the speedup), with a lower bound."""
    return "gain", at_least


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        ours: Our contender.
        other: The other contender: a peer, or unavoidable work such as bare forward passes.
        form: `"cost"`, ours divided by the other's, or `"gain"`, the other's divided by ours.
        value: Our median.
        ratio: Median and quartiles of the ratio; None if the peer is missing.
        bound: Bound of the ratio: a maximum for a cost, a minimum for a gain.
        rounds: Number of ratios.
        missing: The reason why there is no ratio.
        run: Key of the run in the results file.
    """

    ours: str
    other: str
    form: Form
    value: float | None = None
    ratio: Spread | None = None
    bound: float | None = None
    unit: str = "s"
    rounds: int = 1
    note: str = ""
    missing: str = ""
    question: str = ""
    case: str = ""
    device: str = "cpu"
    run: str = ""

    @property
    def verdict(self) -> str:
        """Whether the bound is met; "within noise" if it lies between the quartiles."""
        if self.ratio is None:
            return "not measured"
        if self.bound is None:
            return ""
        if self.ratio.low < self.bound < self.ratio.high:
            return "within noise"
        beyond = self.ratio.middle - self.bound
        return "met" if (beyond <= 0 if self.form == "cost" else beyond >= 0) else "not met"

    def to_plain(self) -> dict[str, Any]:
        """The row as JSON-serializable values."""
        return asdict(self) | {"ratio": self.ratio and list(self.ratio), "verdict": self.verdict}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Row:
        """The inverse of `to_plain`."""
        known = {name: value for name, value in plain.items() if name != "verdict"}
        return cls(**known | {"ratio": known["ratio"] and Spread(*known["ratio"])})

    @property
    def amount(self) -> str:
        """Our median with its unit."""
        if self.value is None:
            return "-"
        if self.unit != "s":
            return f"{self.value:,.{0 if self.value >= 10 else 1}f} {self.unit}"
        for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if self.value >= size:
                return f"{self.value / size:.3g} {unit}"
        return f"{self.value:.1e} s"

    @property
    def shown_ratio(self) -> str:
        """The median ratio."""
        if self.ratio is None:
            return "-"
        return shown(self.ratio.middle) + (" times as fast" if self.form == "gain" else "")

    @property
    def quartiles(self) -> str:
        """The quartiles of the ratio; empty for a single number."""
        if self.ratio is None or self.rounds == 1:
            return ""
        return f"{shown(self.ratio.low)} to {shown(self.ratio.high)}"

    @property
    def cell(self) -> str:
        """The ratio, quartiles and verdict as one table cell."""
        if self.ratio is None:
            return "not measured"
        verdict = f"**{self.verdict}**" if self.verdict == "not met" else self.verdict
        spread = f" ({self.quartiles})" if self.quartiles else ""
        return self.shown_ratio + spread + (f", {verdict}" if verdict else "")

    @property
    def asked(self) -> str:
        """The bound."""
        kind = "at most" if self.form == "cost" else "at least"
        return "" if self.bound is None else f"{kind} {self.bound:g}"


def shown(value: float) -> str:
    """A ratio with a suitable number of digits.

    >>> shown(1.0449), shown(12.34), shown(2204.2)
    ('1.045', '12.3', '2,204')
    """
    return f"{value:.3f}" if value < 3 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def versus(times: Times, ours: str, others: Mapping[str, Asked], note: str = "") -> Iterator[Row]:
    """Yields one row per other contender, including those that are missing."""
    for other, (form, bound) in others.items():
        absent = times.missing.get(other) or times.missing.get(ours)
        if absent:
            yield Row(ours, other, form, bound=bound, note=note, missing=absent.reason)
            continue
        ratio = times.ratio(*((ours, other) if form == "cost" else (other, ours)))
        value, rounds = times.median(ours), len(times.rounds)
        yield Row(ours, other, form, value, ratio, bound, rounds=rounds, note=note)


@dataclass(frozen=True)
class Case:
    """A part of a question that is measured together.

    Its name does not depend on sizes, devices or time.
    """

    name: str
    measure: Callable[[], Iterable[Row]]


@dataclass(frozen=True)
class Question:
    """The question of one benchmark file, how it is answered, and its cases for a setting.

    A `slow` question is measured only if it is named.
    """

    name: str
    title: str
    about: str
    cases: Callable[[Setting], Iterator[Case]]
    slow: bool = False
