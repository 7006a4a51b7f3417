"""Timing: contenders take turns, and each is compared with its neighbors in time."""

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
    """A peer that did not take part, and why."""

    reason: str


def peer(module: str, make: Callable[[Any], T]) -> T | Missing:
    """The result of a function of a module, or the reason why it cannot be imported."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return Missing(f"{module} cannot be imported: {error}")
    return make(found)


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        opened: Lends, each turn, the call that is timed; its set-up and clean-up are not timed.
        per: Amount of work of a call; times are for one piece of it.
    """

    opened: Callable[[], AbstractContextManager[Run]]
    per: float = 1.0

    def turn(self, calls: int, clock: Callable[[], float]) -> float:
        """Seconds per piece of work."""
        with self.opened() as run:
            start = clock()
            for _ in range(calls):
                run()
            return (clock() - start) / calls / self.per


def always(run: Run, per: float = 1.0, *, warm: bool = False) -> Contender:
    """A contender without set-up, or with one call before each turn (`warm`)."""

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
        """The spread of some numbers; of one number, that number."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Times:
    """Seconds of every contender in every round, and why others did not take part."""

    rounds: Sequence[Mapping[str, float]]
    missing: Mapping[str, Missing] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median seconds of one contender."""
        return statistics.median(taken[name] for taken in self.rounds)

    def ratio(self, one: str, other: str) -> Spread:
        """One contender's time over that of another in the same round."""
        return Spread.of([taken[one] / taken[other] for taken in self.rounds])

    def plus(self, name: str, seconds: float) -> Times:
        """With a cost added to every turn of one contender that was measured elsewhere."""
        rounds = [{**taken, name: taken[name] + seconds} for taken in self.rounds]
        return Times(rounds, self.missing)


def take_turns(
    contenders: Mapping[str, Contender | Missing],
    clock: Callable[[], float],
    *,
    least: int = 5,
    most: int = 25,
    seconds: float = 12.0,
    shortest: float = 0.02,
) -> Times:
    """Lets contenders do their work in turns, beginning with another one in each round.

    Other load on the machine, and its temperature, affect neighbors alike. A first round, which does
    not count, warms up and finds how often a short call is repeated.

    Args:
        contenders: Those that take part, and those that are missing.
        clock: Gives seconds.
        least: Minimum number of rounds.
        most: Maximum number of rounds.
        seconds: After this time no new round begins, beyond the minimum.
        shortest: A turn that is shorter repeats its call, and takes the mean.
    """
    missing = {name: one for name, one in contenders.items() if isinstance(one, Missing)}
    present = {name: one for name, one in contenders.items() if isinstance(one, Contender)}
    calls = {}
    for name, one in present.items():
        taken = one.turn(1, clock) * one.per
        if taken < 10 * shortest:  # the first call may have done what is done only once
            taken = one.turn(1, clock) * one.per
        calls[name] = max(1, math.ceil(shortest / max(taken, 1e-6)))
    order, rounds, begun = list(present), [], time.perf_counter()
    while len(rounds) < least or (len(rounds) < most and time.perf_counter() - begun < seconds):
        first = len(rounds) % max(1, len(order))
        names = order[first:] + order[:first]
        rounds.append({name: present[name].turn(calls[name], clock) for name in names})
    return Times(rounds, missing)


@dataclass(frozen=True)
class Setting:
    """The setting of all benchmarks.

    Attributes:
        quick: The smallest sizes and two rounds, as a test; the numbers are not meaningful.
        device: Where the networks are.
        threads: Threads of torch and other libraries.
    """

    quick: bool = False
    device: str = "cpu"
    threads: int = 2

    def size(self, full: T, quick: T) -> T:
        """A size for this setting."""
        return quick if self.quick else full

    def clock(self) -> float:
        """Seconds on the wall; a GPU is waited for."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, run: Run) -> float:
        """The duration of one call."""
        return always(run).turn(1, self.clock)

    def take_turns(
        self, contenders: Mapping[str, Contender | Missing], *, seconds: float = 12, least: int = 5
    ) -> Times:
        """The times of some contenders, in turns for about a number of seconds."""
        # Here, where the peers have been imported: only libraries that are loaded can be limited.
        with threadpool_limits(self.threads):
            if self.quick:
                return take_turns(contenders, self.clock, least=2, most=2, seconds=0, shortest=0)
            return take_turns(contenders, self.clock, least=least, seconds=seconds)
