"""Where a run is trained: a device, and this process among several."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from probekit.errors import ModelError, OptionError
from probekit.extras import optional

__all__ = ["Machine"]


@dataclass(frozen=True)
class Machine:
    """Where a run is trained: a device, and this process among several.

    Attributes:
        device: Of this process.
        rank: Number of this process.
        world: How many processes train together.
        accelerator: What makes a module train in several processes.
    """

    device: torch.device
    rank: int
    world: int
    accelerator: Any

    @classmethod
    def here(cls, device: str | torch.device | None) -> Machine:
        """What `accelerate` finds, or the device that is asked for.

        Raises:
            ModelError: There is no such device.
            OptionError: A device of one's own choice under several processes.
        """
        with optional("accelerate", "training"):
            from accelerate import Accelerator

        # Accelerate keeps what it first decided; alone, the device is chosen here instead.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        accelerator = Accelerator(device_placement=False, cpu=several and str(device) == "cpu")
        found = accelerator.device
        if device is not None:
            try:
                found = torch.empty(0, device=device).device
            except (RuntimeError, AssertionError) as error:
                reason = str(error).splitlines()[0]
                raise ModelError(f"device {str(device)!r} cannot be used here: {reason}") from None
            if accelerator.num_processes > 1 and found.type != accelerator.device.type:
                raise OptionError(
                    f"device={str(device)!r} cannot be chosen for {accelerator.num_processes} "
                    "processes, each of which has its own"
                )
        return cls(found, accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def spread(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over the processes if there are several."""
        if self.world == 1:
            return module
        prepared: nn.Module = self.accelerator.prepare_model(module, device_placement=False)
        return prepared

    def share_buffers(self, module: nn.Module) -> None:
        """Gives all processes the first one's batch-norm statistics, which are what is kept."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.world == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def agree(self, decision: bool) -> bool:
        """What the first process decides."""
        if self.world == 1:
            return decision
        flag = torch.tensor(int(decision), device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag)
