"""How many processes work together, and what each of them found."""

from __future__ import annotations

import os
from dataclasses import dataclass
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
