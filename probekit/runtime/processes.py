"""The processes of a distributed run, communication between them, and the device of a training run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from probekit.errors import ModelError, OptionError, first_line, optional

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
        dist.all_gather_object(found, value)
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
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return Processes()
        with optional("accelerate", "a run of several processes"):
            from accelerate import PartialState

        PartialState()
    return Processes(dist.get_rank(), dist.get_world_size())


def usable_device(device: str | torch.device) -> torch.device:
    """The device with its number, such as `cuda:0`; raises `ModelError` if it cannot be used here."""
    try:
        return torch.empty(0, device=own_device(device)).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {str(device)!r} cannot be used here: {first_line(error)}"
        ) from None


def own_device(device: str | torch.device) -> torch.device:
    """A device by its name; of several GPUs, `cuda` is that of this process, as accelerate chooses it."""
    found, rank = torch.device(device), os.environ.get("LOCAL_RANK")
    begun = dist.is_available() and dist.is_initialized()  # torch knows the GPU of this process
    if begun or rank is None or found.type != "cuda" or found.index is not None:
        return found
    return torch.device("cuda", int(rank) % max(1, torch.cuda.device_count()))


@dataclass(frozen=True, kw_only=True)
class Machine(Processes):
    """The processes of a training run, the device of this one, and accelerate's `Accelerator`."""

    device: torch.device
    accelerator: Any

    @classmethod
    def here(cls, device: str | torch.device | None) -> Machine:
        """Creates a machine from the environment of `accelerate`, or for the requested device."""
        with optional("accelerate", "training"):
            from accelerate import Accelerator

        # Accelerate caches its first choice; with a single process, the device is selected here instead.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        accelerator = Accelerator(device_placement=False, cpu=several and str(device) == "cpu")
        found = accelerator.device
        if device is not None:
            found = usable_device(device)
            if accelerator.num_processes > 1 and found.type != accelerator.device.type:
                raise OptionError(
                    f"device={str(device)!r} cannot be chosen for {accelerator.num_processes} "
                    "processes, each of which has its own"
                )
        return cls(
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            device=found,
            accelerator=accelerator,
        )

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def spread(self, module: nn.Module) -> nn.Module:
        """Wraps a module to average gradients over the processes, if there are several."""
        if self.world == 1:
            return module
        prepared: nn.Module = self.accelerator.prepare_model(module, device_placement=False)
        return prepared

    def share_buffers(self, module: nn.Module) -> None:
        """Copies the batch-norm statistics of the first process, which are saved, to all processes."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
