"""A question, its cases, and the setting in which they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from threadpoolctl import threadpool_limits

from harness.peers import Missing
from harness.row import Row
from harness.timing import Clock, Contender, Patience, Times, take_turns

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """How benchmarks run.

    Attributes:
        quick: The smallest sizes and two rounds, to see that all works; the numbers mean nothing.
        device: Where the networks are.
        threads: Threads of torch and of what else computes.
        clock: Which seconds count.
    """

    quick: bool = False
    device: str = "cpu"
    threads: int = 2
    clock: Literal["wall", "processor"] = "wall"

    def size(self, full: T, quick: T) -> T:
        """A size for this setting."""
        return quick if self.quick else full

    @property
    def timer(self) -> Clock:
        """The clock."""
        return Clock(self.clock, self.device)

    def take_turns(
        self,
        contenders: Mapping[str, Contender | Missing],
        *,
        seconds: float = 12.0,
        least: int = 5,
    ) -> Times:
        """The times of some contenders, in turns for about so many seconds."""
        patience = Patience(2, 2, 0.0, 0.0) if self.quick else Patience(least, seconds=seconds)
        # Here, where the peers have been imported: only libraries that are loaded can be limited.
        with threadpool_limits(self.threads):
            return take_turns(contenders, self.timer, patience)


@dataclass(frozen=True)
class Case:
    """One part of a question that is measured in one go.

    Attributes:
        name: What is measured, in words; the same at all sizes, devices and times.
        measure: Measures it.
        devices: Where it can be measured.
    """

    name: str
    measure: Callable[[], Iterable[Row]]
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Question:
    """What one file of benchmarks answers.

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
