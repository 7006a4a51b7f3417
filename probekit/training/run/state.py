"""The state of a training run: everything that training changes and a checkpoint stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PROGRESS = ("epoch", "step", "seconds", "best_epoch", "best_accuracy")


@dataclass
class TrainingState:
    """Network, optimizer, random generators and progress of a run.

    `losses` (steps, 2) are cross-entropy and penalty of each step of this `epoch`, the current or next one.
    `best_epoch` is -1 if there is none yet, `best_accuracy` None if no images are held out.
    """

    module: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    device: torch.device
    losses: Tensor
    hits: Tensor
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_accuracy: float | None = None

    def next_epoch(self) -> None:
        """Advances to the beginning of the next epoch."""
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.losses.zero_()
        self.hits.zero_()

    def to_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as tensors and plain data."""
        parts = {
            "model": self.module.state_dict(),
            "momentum": {
                name: momentum
                for name, parameter in self.module.named_parameters()
                if (momentum := self.optimizer.state.get(parameter, {}).get("momentum_buffer"))
                is not None
            },
            "random": {"cpu": torch.get_rng_state()},
            "place": {"losses": self.losses, "hits": self.hits},
        }
        if self.device.type == "cuda":
            parts["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        tensors = {f"{part}.{name}": x for part, all_ in parts.items() for name, x in all_.items()}
        progress = {name: getattr(self, name) for name in _PROGRESS}
        return tensors, {"place": progress, "scaler": self.scaler.state_dict()}

    def load_checkpoint(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Loads the state of a checkpoint, with the momentum in the memory layout of the parameters."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = tensor
        self.module.load_state_dict(parts["model"])
        for name, parameter in self.module.named_parameters():
            if name in parts.get("momentum", {}):
                buffer = torch.empty_like(parameter, requires_grad=False)
                buffer.copy_(parts["momentum"][name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        torch.set_rng_state(parts["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in parts["random"]:
            torch.cuda.set_rng_state(parts["random"]["cuda"], self.device)
        self.scaler.load_state_dict(facts["scaler"])
        self.losses.copy_(parts["place"]["losses"])
        self.hits.copy_(parts["place"]["hits"])
        for name in _PROGRESS:
            value = facts["place"][name]
            if not isinstance(value, int | float | None):
                raise ValueError(f"{name} is {value!r}")
            setattr(self, name, value)
