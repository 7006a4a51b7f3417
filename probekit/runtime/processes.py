"""The processes of a distributed run, and communication between them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch

from probekit.extras import optional

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The rank of this process, starting at 0, and the number of processes launched together."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """Gathers the values of all processes in rank order; every process gets the same list."""
        if self.world == 1:
            return [value]
        found: list[Value] = [value] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def in_step(self, items: Iterable[Value]) -> Iterator[list[Value]]:
        """Yields the next item of every process in rank order, until all are exhausted.

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
    """The processes started by `torchrun` or `accelerate launch`; otherwise a single process."""
    if not torch.distributed.is_available():
        return Processes()
    if not torch.distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return Processes()
        with optional("accelerate", "a run of several processes"):
            from accelerate import PartialState

        PartialState()
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
