"""The device and the processes of a training run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from probekit.errors import ModelError, OptionError
from probekit.extras import optional
from probekit.runtime.processes import Processes


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
