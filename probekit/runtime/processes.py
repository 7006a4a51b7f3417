"""How many processes work together, and what each of them found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch

from probekit.extras import optional

__all__ = ["Processes", "processes"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process among those that were launched together.

    Attributes:
        rank: Its number, from 0.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """What every process has, in the order of their ranks; all get the same list."""
        if self.world == 1:
            return [value]
        found: list[Value] = [value] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def in_step(self, items: Iterable[Value]) -> Iterator[list[Value]]:
        """The next item of every process, in the order of their ranks, until none has any left.

        >>> list(Processes().in_step("ab"))
        [['a'], ['b']]
        """
        own = iter(items)
        while True:
            together = [value for here in self.gather(list(islice(own, 1))) for value in here]
            if not together:
                return
            yield together


def processes() -> Processes:
    """The processes that `torchrun` or `accelerate launch` started; one otherwise.

    >>> processes()
    Processes(rank=0, world=1)
    """
    if not torch.distributed.is_available():
        return Processes()
    if not torch.distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return Processes()
        with optional("accelerate", "a run of several processes"):
            from accelerate import PartialState

        PartialState()
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
