"""The directory of a training run: its identity, card, weights, checkpoint and log."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from probekit.errors import OutputError, foreign_file
from probekit.results.files import writable
from probekit.results.folders import write_whole

CARD = "model.json"
RUN = "run.json"
# What may differ in the identity of a run or sweep that is continued.
IGNORED = ("probekit", "recipe.guessed", "recipe.source")
_PROGRESS = ("epoch", "step", "seconds", "best_epoch", "best_accuracy")


@dataclass(frozen=True)
class Run:
    """A finished training run; functions that take a model or a folder take it too.

    Attributes:
        folder: Folder of the run; `load_model(folder)` loads the network of its best epoch.
        recipe: Name of the recipe.
        alpha: The regularizer's weight; None if it followed a schedule.
        alpha_schedule: The weight over the epochs, as text.
        seed: Seed of the run.
        epochs: Number of epochs.
        best_epoch: The epoch, counted from 0, with the highest validation accuracy; the last epoch
            if no images were held out.
        validation_accuracy: Validation accuracy of the best epoch; None if no images were held out.
        test_accuracy: Test accuracy of the best epoch.
        selectivity_mean: Class selectivity of the best epoch on the test split: the mean over layers
            of the mean over units.
        selectivity: The mean selectivity over the units of each layer.
        dead_units: Number of dead units of each layer.
    """

    folder: Path
    recipe: str
    alpha: float | None
    alpha_schedule: str
    seed: int
    epochs: int
    best_epoch: int
    validation_accuracy: float | None
    test_accuracy: float
    selectivity_mean: float
    selectivity: Mapping[str, float]
    dead_units: Mapping[str, int]

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def log(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.read_csv(self.folder / "log.csv")


def read_run(folder: str | Path) -> Run | None:
    """Reads the finished run in a folder; None if there is no run or it has not ended."""
    card = Path(folder, CARD)
    if not os.path.isfile(card):
        return None
    facts = read_card(folder)
    with foreign_file(f"{str(card)!r} is not the card of a training run", OutputError):
        if not facts["finished"]:
            return None
        recipe = facts["recipe"]
        own = {"folder": card.parent, "recipe": recipe["name"], "epochs": recipe["epochs"]}
        known = Run.__dataclass_fields__.keys() - own.keys()
        return Run(**own, **{name: facts[name] for name in known})


def read_card(folder: str | Path) -> dict[str, Any]:
    card = Path(folder, CARD)
    with foreign_file(f"{str(card)!r} is not the card of a training run", OutputError):
        return dict(json.loads(card.read_text()))


class RunDirectory:
    """The files of one run, each written atomically.

    The best epoch is saved in this order: its weights under a new name, the checkpoint that refers to
    it, and the card that points to it. Then the weights of the previous best epoch are removed. The
    card therefore always points to complete weights, even if the process dies.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], data: str) -> None:
        self.folder, self.facts, self.data = folder, facts, data
        self.checkpoint = folder / "last.safetensors"

    def best_weights(self, state: TrainingState) -> Path:
        """The file of the weights of the best epoch."""
        return self.folder / f"best-{state.best_epoch:04d}.safetensors"

    def save(self, state: TrainingState) -> None:
        tensors, facts = state.to_checkpoint()
        write_checkpoint(self.checkpoint, tensors, {**facts, "data": self.data})

    def restore(self, state: TrainingState) -> None:
        """Loads the checkpoint into a state; leaves the state unchanged if there is none."""
        if not self.checkpoint.exists():
            return
        tensors, facts = read_checkpoint(self.checkpoint)
        with _damaged(self.checkpoint):
            if not self.data.startswith(facts["data"]):  # older checkpoints have fewer hashes
                raise OutputError(
                    f"{str(self.folder)!r} was begun with other images than those found now; give the same "
                    "data_root, or choose another folder"
                )
            state.load_checkpoint(tensors, facts)

    def point_to_best(self, state: TrainingState) -> None:
        """Points the card to the best weights, and removes the weights of other epochs."""
        best = self.best_weights(state)
        if best.exists():
            self.write_card(state, finished=False)
        for other in self.folder.glob("best-*.safetensors"):
            if other != best:
                other.unlink()

    def write_card(self, state: TrainingState, *, finished: bool, **more: Any) -> None:
        """Writes the card, which `load_model` and `read_run` read."""
        card = {
            **self.facts,
            "weights": self.best_weights(state).name,
            "best_epoch": state.best_epoch,
            "validation_accuracy": state.best_accuracy,
            "finished": finished,
            **more,
        }
        write_whole(self.folder / CARD, json.dumps(card, indent=2) + "\n")


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors, and plain data in the file's header, as one safetensors file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(plain, {"facts": json.dumps(dict(facts))}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors, on the CPU, and the plain data of a checkpoint."""
    with _damaged(path), safe_open(path, framework="pt") as file:
        facts = dict(json.loads((file.metadata() or {})["facts"]))
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def _damaged(path: Path) -> AbstractContextManager[None]:
    advice = "; move the run's folder away to start again"
    return foreign_file(f"checkpoint {str(path)!r} cannot be read", OutputError, advice)


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


def read_log(file: Path) -> list[dict[str, Any]]:
    """Reads the records of a JSON-lines log; a truncated last line is ignored."""
    if not file.is_file():
        return []
    records = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            int(record["epoch"])
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        records.append(record)
    return records


class RunLog:
    """Writes `log.jsonl` and `log.csv` in a run's folder, in step with its checkpoints.

    A record is written before the checkpoint of its epoch. When a run resumes, records after its
    checkpoint are dropped, so no epoch is missing or repeated.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self._lines = folder / "log.jsonl"
        self._table = folder / "log.csv"
        self.records = [record for record in read_log(self._lines) if record["epoch"] < epochs_done]
        if self._lines.exists() or self.records:
            write_whole(self._lines, "".join(map(_line, self.records)))

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds the record of an epoch: numbers, and mappings from layers to numbers."""
        self.records.append(dict(record))
        advice = "; free some space and start again with the same options, which resumes"
        with writable(self._lines, advice), self._lines.open("a") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        write_whole(self._table, pd.json_normalize(self.records, sep="/").to_csv(index=False))


def measures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The known numbers of a record, except the epoch; those of layers are named `NAME/LAYER`."""
    row = pd.json_normalize([dict(record)], sep="/").drop(columns="epoch").iloc[0]
    known = pd.to_numeric(row, errors="coerce").dropna()
    return {str(name): float(value) for name, value in known.items()}


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
