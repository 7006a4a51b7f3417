"""The one way of timing: contenders take turns, and each is compared with its neighbours in time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from harness.peers import Missing

Run = Callable[[], object]


@dataclass(frozen=True)
class Clock:
    """Seconds on the wall, or seconds that this process has had a processor; a GPU is waited for."""

    kind: Literal["wall", "processor"] = "wall"
    device: str = "cpu"

    def __call__(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if self.kind == "wall" else time.process_time()


@dataclass(frozen=True)
class Patience:
    """How long contenders take turns.

    Attributes:
        least: At least so many rounds.
        most: At most so many.
        seconds: After this time no new round begins, beyond the least.
        shortest: A turn that is shorter repeats its call, and takes the mean.
    """

    least: int = 5
    most: int = 25
    seconds: float = 12.0
    shortest: float = 0.02


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        opened: Lends, each turn, the call that is timed; what it sets up and clears away is not timed.
        per: How much work a call does; times are for one piece of it.
    """

    opened: Callable[[], AbstractContextManager[Run]]
    per: float = 1.0


def always(run: Run, per: float = 1.0, *, warm: bool = False) -> Contender:
    """A contender that needs nothing to be set up.

    Args:
        run: What is timed.
        per: As for `Contender`.
        warm: Run it once before each turn, where another contender does so too.
    """

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
    """Seconds of every contender in every round.

    Attributes:
        rounds: What each took, round by round.
        missing: Why the others did not take part.
    """

    rounds: Sequence[Mapping[str, float]]
    missing: Mapping[str, Missing] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median seconds of one contender."""
        return statistics.median(taken[name] for taken in self.rounds)

    def ratio(self, one: str, other: str) -> Spread:
        """One contender's time over that of another in the same round."""
        return Spread.of([taken[one] / taken[other] for taken in self.rounds])

    def plus(self, name: str, seconds: float) -> Times:
        """With a cost added that falls on every turn of one contender, but was not met in it."""
        return Times(
            [{**taken, name: taken[name] + seconds} for taken in self.rounds], self.missing
        )


def take_turns(
    contenders: Mapping[str, Contender | Missing], clock: Clock, patience: Patience
) -> Times:
    """Lets contenders do their work in turns, beginning with another one in each round.

    What else the machine does, and how warm it is, falls on neighbours alike. A first round, which
    does not count, warms up and tells how often a short call is repeated.
    """
    missing = {name: one for name, one in contenders.items() if isinstance(one, Missing)}
    present = {name: one for name, one in contenders.items() if isinstance(one, Contender)}
    calls = {name: _calls(one, clock, patience.shortest) for name, one in present.items()}
    order = list(present)
    rounds: list[dict[str, float]] = []
    begun = time.perf_counter()
    while len(rounds) < patience.least or (
        len(rounds) < patience.most and time.perf_counter() - begun < patience.seconds
    ):
        first = len(rounds) % max(1, len(order))
        rounds.append(
            {
                name: _turn(present[name], calls[name], clock)
                for name in order[first:] + order[:first]
            }
        )
    return Times(rounds, missing)


def _calls(contender: Contender, clock: Clock, shortest: float) -> int:
    """How many calls make a turn; what is done only once does not count where that is quick to see."""
    taken = _turn(contender, 1, clock) * contender.per
    if taken < 10 * shortest:
        taken = _turn(contender, 1, clock) * contender.per
    return max(1, math.ceil(shortest / max(taken, 1e-6)))


def _turn(contender: Contender, calls: int, clock: Clock) -> float:
    run: Any
    with contender.opened() as run:
        start = clock()
        for _ in range(calls):
            run()
        return (clock() - start) / calls / contender.per
