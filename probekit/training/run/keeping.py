"""What a run keeps in its folder: the checkpoint, the best weights, and the card that names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probekit.errors import OutputError
from probekit.training.run.checkpoint import (
    capture_random_state,
    damaged,
    momentum_of,
    read_checkpoint,
    restore_momentum,
    restore_random_state,
    write_checkpoint,
    write_text,
)
from probekit.training.run.folder import CARD, FINAL, LAST

__all__ = ["Keeper", "Place", "Trained"]


@dataclass
class Place:
    """Where a run is.

    Attributes:
        losses: (steps, 2) cross-entropy and penalty of each step of this epoch.
        hits: Right predictions of this epoch.
        epoch: The epoch that goes on or comes next, from 0.
        step: How many of its steps are done.
        seconds: How long they took.
        best_epoch: The best epoch so far; -1 before there is one.
        best_accuracy: Its validation accuracy; None where nothing is held out.
    """

    losses: Tensor
    hits: Tensor
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_accuracy: float | None = None

    def next_epoch(self) -> None:
        """Goes to the beginning of the next epoch."""
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.losses.zero_()
        self.hits.zero_()

    def facts(self) -> dict[str, Any]:
        """All but the tensors."""
        return {name: x for name, x in vars(self).items() if not isinstance(x, Tensor)}


@dataclass(frozen=True)
class Trained:
    """What training changes, and a checkpoint therefore holds."""

    module: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    place: Place
    device: torch.device


@dataclass(frozen=True)
class Keeper:
    """Reads and writes the files of one run.

    A best epoch is kept in this order: its weights under a name of its own, the checkpoint that knows
    of it, the card that points at it; then the weights of the former one go. So the card points at
    whole weights whenever the process dies.

    Attributes:
        folder: Of the run.
        data: Hash of the training images.
        facts: What the card says in any case.
    """

    folder: Path
    data: str
    facts: Mapping[str, Any]

    def best_file(self, place: Place) -> Path:
        """The weights of the best epoch."""
        return self.folder / f"best-{place.best_epoch:04d}.safetensors"

    def save_best(self, trained: Trained) -> None:
        """Writes the weights as those of the best epoch.

        Raises:
            OutputError: They cannot be written.
        """
        facts = {"epoch": trained.place.best_epoch}
        write_checkpoint(self.best_file(trained.place), trained.module.state_dict(), facts)

    def save(self, trained: Trained) -> None:
        """Writes the checkpoint.

        Raises:
            OutputError: It cannot be written; the old one is whole.
        """
        place = trained.place
        parts = {
            "model": trained.module.state_dict(),
            "momentum": momentum_of(trained.optimizer, trained.module),
            "random": capture_random_state(trained.device),
            "place": {"losses": place.losses, "hits": place.hits},
        }
        tensors = {f"{part}.{name}": x for part, all_ in parts.items() for name, x in all_.items()}
        facts = {"place": place.facts(), "scaler": trained.scaler.state_dict(), "data": self.data}
        write_checkpoint(self.folder / LAST, tensors, facts)

    def restore(self, trained: Trained) -> None:
        """Goes to where the checkpoint is; stays at the beginning if there is none.

        Raises:
            OutputError: It is damaged, or of a run on other images.
        """
        path = self.folder / LAST
        if not path.exists():
            return
        tensors, facts = read_checkpoint(path)
        with damaged(path):
            self._restore(trained, tensors, facts)

    def _restore(
        self, trained: Trained, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        if facts["data"] != self.data:
            raise OutputError(
                f"{str(self.folder)!r} was begun with other training images than those found now; "
                "give the same data_root, or choose another folder"
            )
        trained.module.load_state_dict(_part(tensors, "model."))
        restore_momentum(trained.optimizer, trained.module, _part(tensors, "momentum."))
        restore_random_state(_part(tensors, "random."), trained.device)
        trained.scaler.load_state_dict(facts["scaler"])
        place = trained.place
        place.losses.copy_(tensors["place.losses"])
        place.hits.copy_(tensors["place.hits"])
        for name in place.facts():
            value = facts["place"][name]
            if not isinstance(value, int | float | None):
                raise ValueError(f"{name} is {value!r}")
            setattr(place, name, value)

    def settle_best(self, place: Place) -> None:
        """Points the card at the best weights, and removes those of other epochs."""
        best = self.best_file(place)
        if best.exists():
            self.write_card(place, finished=False)
        for other in self.folder.glob("best-*.safetensors"):
            if other != best:
                other.unlink()

    def write_card(self, place: Place, *, finished: bool, **more: Any) -> None:
        """Writes what `load_model` and `read_run` read."""
        card = {
            **self.facts,
            "weights": self.best_file(place).name,
            "best_epoch": place.best_epoch,
            "validation_accuracy": place.best_accuracy,
            "finished": finished,
            **more,
        }
        write_text(self.folder / CARD, json.dumps(card, indent=2) + "\n")

    def save_final(self, module: nn.Module, epoch: int) -> None:
        """Writes the weights of the last epoch."""
        write_checkpoint(self.folder / FINAL, module.state_dict(), {"epoch": epoch})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
