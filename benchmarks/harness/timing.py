"""Timing: contenders take turns, and ratios compare measurements of the same round."""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")
Run = Callable[[], object]


@dataclass(frozen=True)
class Missing:
    """A peer that was not measured, and the reason."""

    reason: str


def peer(module: str, make: Callable[[Any], T]) -> T | Missing:
    """Calls a function with an imported module; returns the reason if the import fails."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return Missing(f"{module} cannot be imported: {error}")
    return make(found)


@dataclass(frozen=True)
class Contender:
    """One implementation of the task.

    `opened` yields the timed call of each turn; setup and cleanup are not timed. A call does `per` work
    items, and times are per item.
    """

    opened: Callable[[], AbstractContextManager[Run]]
    per: float = 1.0

    def turn(self, calls: int, clock: Callable[[], float]) -> float:
        """Measures the seconds per work item."""
        with self.opened() as run:
            start = clock()
            for _ in range(calls):
                run()
            return (clock() - start) / calls / self.per


def always(run: Run, per: float = 1.0, *, warm: bool = False) -> Contender:
    """A contender without setup, or with one untimed call before each turn (`warm`)."""

    @contextmanager
    def opened() -> Iterator[Run]:
        if warm:
            run()
        yield run

    return Contender(opened, per)


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some numbers; a single number is its own median and quartiles."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Times:
    """Seconds of every contender in every round, and the reasons why others are missing."""

    rounds: Sequence[Mapping[str, float]]
    missing: Mapping[str, Missing] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median seconds of one contender."""
        return statistics.median(taken[name] for taken in self.rounds)

    def ratio(self, one: str, other: str) -> Spread:
        """The ratio of one contender's time to another's in the same round."""
        return Spread.of([taken[one] / taken[other] for taken in self.rounds])

    def plus(self, name: str, seconds: float) -> Times:
        """Adds a separately measured cost to every turn of one contender."""
        rounds = [{**taken, name: taken[name] + seconds} for taken in self.rounds]
        return Times(rounds, self.missing)


def take_turns(
    contenders: Mapping[str, Contender | Missing],
    clock: Callable[[], float],
    *,
    least: int = 3,
    most: int = 25,
    seconds: float = 6.0,
    shortest: float = 0.02,
) -> Times:
    """Measures contenders in turns; each round starts with a different one.

    Other load on the machine and its temperature affect adjacent turns equally. A first round warms up
    and determines how often a short call is repeated. It counts only if every call takes more than a
    second, so that warming up is negligible.

    There are at least `least` rounds, and no new one after `seconds`. Calls shorter than `shortest`
    seconds are repeated and averaged.
    """
    missing = {name: one for name, one in contenders.items() if isinstance(one, Missing)}
    present = {name: one for name, one in contenders.items() if isinstance(one, Contender)}
    calls: dict[str, int] = {}
    warm: dict[str, float] = {}
    for name, one in present.items():
        taken = one.turn(1, clock) * one.per
        if taken < 10 * shortest:  # the first call may include one-time work
            taken = one.turn(1, clock) * one.per
        calls[name] = max(1, math.ceil(shortest / max(taken, 1e-6)))
        warm[name] = taken
    order, rounds, begun = list(present), [], time.perf_counter()
    if warm and min(warm.values()) > 1:
        rounds.append({name: taken / present[name].per for name, taken in warm.items()})
    while len(rounds) < least or (len(rounds) < most and time.perf_counter() - begun < seconds):
        first = len(rounds) % max(1, len(order))
        names = order[first:] + order[:first]
        rounds.append({name: present[name].turn(calls[name], clock) for name in names})
    return Times(rounds, missing)


@dataclass(frozen=True)
class Setting:
    """The setting of all benchmarks; `quick` uses the smallest sizes and two rounds, as a test."""

    quick: bool = False
    device: str = "cpu"
    threads: int = 2

    def size(self, full: T, quick: T) -> T:
        """A size for this setting."""
        return quick if self.quick else full

    def clock(self) -> float:
        """The wall-clock time in seconds, after synchronizing with a GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, run: Run) -> float:
        """The duration of one call."""
        return always(run).turn(1, self.clock)

    def take_turns(
        self, contenders: Mapping[str, Contender | Missing], *, seconds: float = 6, least: int = 3
    ) -> Times:
        """Measures contenders in turns for about the given number of seconds."""
        # Threads can be limited only for loaded libraries, so this must follow the peers' imports.
        with threadpool_limits(self.threads):
            if self.quick:
                return take_turns(contenders, self.clock, least=2, most=2, seconds=0, shortest=0)
            return take_turns(contenders, self.clock, least=least, seconds=seconds)
