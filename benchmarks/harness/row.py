"""A row: one ratio, what is asked of it, and whether that is met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.timing import Spread, Times

Form = Literal["cost", "gain"]


@dataclass(frozen=True)
class Asked:
    """How a ratio is told, and the bound on it where there is one."""

    form: Form
    bound: float | None = None


def at_most(bound: float) -> Asked:
    """Our time over the other's is not to be above a bound."""
    return Asked("cost", bound)


def at_least(bound: float) -> Asked:
    """The other's time over ours, how many times as fast we are, is not to be below a bound."""
    return Asked("gain", bound)


def cost() -> Asked:
    """Our time over the other's, without a bound."""
    return Asked("cost")


def gain() -> Asked:
    """How many times as fast we are, without a bound."""
    return Asked("gain")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        ours: What is compared.
        other: With what: a peer, or the floor below which nothing can go.
        form: `"cost"`, ours over the other's, or `"gain"`, the other's over ours.
        value: Our median.
        ratio: Median and quartiles of the ratio; None where the peer is missing.
        bound: What is asked of the ratio: at most for a cost, at least for a gain.
        unit: Of the value: `"s"` or `"MiB"`.
        rounds: How many ratios the median is of.
        note: What else was seen.
        missing: Why there is no ratio.
        question: The name of the question.
        case: What was measured, in words.
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
    def key(self) -> tuple[str, str, str, str, str]:
        """What a newer row has in common with the one that it replaces."""
        return self.question, self.case, self.ours, self.other, self.device

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
        """From what JSON holds."""
        known = {name: value for name, value in plain.items() if name != "verdict"}
        return cls(**known | {"ratio": known["ratio"] and Spread(*known["ratio"])})


def versus(times: Times, ours: str, others: Mapping[str, Asked], note: str = "") -> Iterator[Row]:
    """One row for each of the others, where it took part and where it did not."""
    for other, asked in others.items():
        shared: dict[str, Any] = {"form": asked.form, "bound": asked.bound, "note": note}
        absent = times.missing.get(other) or times.missing.get(ours)
        if absent:
            yield Row(ours, other, missing=absent.reason, **shared)
            continue
        pair = (ours, other) if asked.form == "cost" else (other, ours)
        yield Row(
            ours,
            other,
            value=times.median(ours),
            ratio=times.ratio(*pair),
            rounds=len(times.rounds),
            **shared,
        )
