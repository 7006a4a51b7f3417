"""Questions, their cases, and rows: one ratio, its bound, and whether that is met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.timing import Setting, Spread, Times

Form = Literal["cost", "gain"]
Asked = tuple[Form, float | None]


def cost(at_most: float | None = None) -> Asked:
    """Our time over the other's, and its bound."""
    return "cost", at_most


def gain(at_least: float | None = None) -> Asked:
    """The other's time over ours, how many times as fast we are, and its bound."""
    return "gain", at_least


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        ours: Our contender.
        other: The other: a peer, or the work that cannot be saved.
        form: `"cost"`, ours over the other's, or `"gain"`, the other's over ours.
        value: Our median.
        ratio: Median and quartiles of the ratio; None where the peer is missing.
        bound: Of the ratio: at most for a cost, at least for a gain.
        unit: Of the value: `"s"` or `"MiB"`.
        rounds: Number of ratios.
        note: Further observations.
        missing: Why there is no ratio.
        question: The name of the question.
        case: The name of the case.
        device: `"cpu"` or `"cuda"`.
        run: The run that measured it, in the file of results.
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
        """Whether the bound is met; within noise where it lies between the quartiles."""
        if self.ratio is None:
            return "not measured"
        if self.bound is None:
            return ""
        if self.ratio.low < self.bound < self.ratio.high:
            return "within noise"
        beyond = self.ratio.middle - self.bound
        return "met" if (beyond <= 0 if self.form == "cost" else beyond >= 0) else "not met"

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
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
        """The quartiles of the ratio; nothing for a single number."""
        if self.ratio is None or self.rounds == 1:
            return ""
        return f"{shown(self.ratio.low)} to {shown(self.ratio.high)}"

    @property
    def asked(self) -> str:
        """The bound."""
        kind = "at most" if self.form == "cost" else "at least"
        return "" if self.bound is None else f"{kind} {self.bound:g}"


def shown(value: float) -> str:
    """A ratio with the digits that matter.

    >>> shown(1.0449), shown(12.34), shown(2204.2)
    ('1.045', '12.3', '2,204')
    """
    return f"{value:.3f}" if value < 3 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def versus(times: Times, ours: str, others: Mapping[str, Asked], note: str = "") -> Iterator[Row]:
    """One row for each of the others, where it took part and where it did not."""
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
    """One part of a question that is measured in one go.

    Attributes:
        name: The same at all sizes, devices and times.
        measure: Measures it.
        devices: Where it can be measured.
    """

    name: str
    measure: Callable[[], Iterable[Row]]
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Question:
    """The question of one file of benchmarks.

    Attributes:
        name: Its name on the command line.
        title: The question.
        about: How it is answered.
        cases: Its cases in a setting.
    """

    name: str
    title: str
    about: str
    cases: Callable[[Setting], Iterator[Case]]
