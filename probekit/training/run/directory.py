"""The directory of a training run: its identity, card, weights and checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from probekit._version import __version__
from probekit.errors import OptionError, OutputError, foreign_file
from probekit.results.folders import claimed, write_whole
from probekit.training.run.state import TrainingState

CARD = "model.json"


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
    """Reads the finished run in a folder; None if there is no run or it has not ended.

    Raises:
        OutputError: Its card is damaged.
    """
    card = Path(folder, CARD)
    if not card.is_file():
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
    """Reads the card of a run.

    Raises:
        OutputError: It is damaged.
    """
    card = Path(folder, CARD)
    with foreign_file(f"{str(card)!r} is not the card of a training run", OutputError):
        return dict(json.loads(card.read_text()))


class RunDirectory:
    """The files of one run, each written atomically.

    The best epoch is saved in this order: its weights under a new name, the checkpoint that refers to
    it, and the card that points to it. Then the weights of the previous best epoch are removed. The
    card therefore always points to complete weights, even if the process dies.
    """

    IDENTITY = "run.json"

    def __init__(self, folder: Path, facts: Mapping[str, Any], data: str) -> None:
        self.folder, self.facts, self.data = folder, facts, data
        self.checkpoint = folder / "last.safetensors"

    @classmethod
    @contextmanager
    def claimed(cls, folder: Path, identity: Mapping[str, Any]) -> Iterator[None]:
        """Creates the folder of a run, or checks that it belongs to it, and locks it for this process.

        Raises:
            OutputError: The folder holds something else or a run with another recipe, seed or alpha,
                another process is training in it, or it cannot be written.
        """
        facts = {**identity, "probekit": __version__}
        check = partial(check_same, what="run")
        with claimed(folder / cls.IDENTITY, facts, "training run", check):
            yield

    def best_weights(self, state: TrainingState) -> Path:
        """The file of the weights of the best epoch."""
        return self.folder / f"best-{state.best_epoch:04d}.safetensors"

    def save_best(self, state: TrainingState) -> None:
        """Writes the weights as those of the best epoch."""
        facts = {"epoch": state.best_epoch}
        write_checkpoint(self.best_weights(state), state.module.state_dict(), facts)

    def save_final(self, state: TrainingState) -> None:
        """Writes the weights of the last epoch."""
        path = self.folder / "final.safetensors"
        write_checkpoint(path, state.module.state_dict(), {"epoch": state.epoch - 1})

    def save(self, state: TrainingState) -> None:
        """Writes the checkpoint.

        Raises:
            OutputError: The checkpoint cannot be written; the old one is intact.
        """
        tensors, facts = state.to_checkpoint()
        write_checkpoint(self.checkpoint, tensors, {**facts, "data": self.data})

    def restore(self, state: TrainingState) -> None:
        """Loads the checkpoint into a state; leaves the state unchanged if there is none.

        Raises:
            OutputError: The checkpoint is damaged, or belongs to a run on other images.
        """
        if not self.checkpoint.exists():
            return
        tensors, facts = read_checkpoint(self.checkpoint)
        with _damaged(self.checkpoint):
            if facts["data"] != self.data:
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
        write_whole(self.folder / CARD, _json(card))


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors, and plain data in the file's header, as one safetensors file.

    Raises:
        OutputError: The file cannot be written; the old file is intact.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "last.safetensors")
        ...     write_checkpoint(path, {"model.w": torch.ones(2)}, {"epoch": 3})
        ...     read_checkpoint(path)
        ({'model.w': tensor([1., 1.])}, {'epoch': 3})
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(plain, {"facts": json.dumps(dict(facts))}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors, on the CPU, and the plain data of a checkpoint.

    Raises:
        OutputError: The file is missing, damaged, or was not written by `write_checkpoint`.
    """
    with _damaged(path), safe_open(path, framework="pt") as file:
        facts = dict(json.loads((file.metadata() or {})["facts"]))
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def _damaged(path: Path) -> AbstractContextManager[None]:
    advice = "; move the run's folder away to start again"
    return foreign_file(f"checkpoint {str(path)!r} cannot be read", OutputError, advice)


def layer_names(layers: Any) -> list[str] | None:
    """A selection of layers as names that can be written to a file.

    Raises:
        OptionError: The selection contains types or predicates, which cannot be written.
    """
    if layers is None:
        return None
    names = [layers] if isinstance(layers, str) else list(layers)
    if not all(isinstance(name, str) for name in names):
        raise OptionError(
            "layers of a training run are names or globs, which can be written to its folder, not "
            f"{layers!r}"
        )
    return names


def check_same(file: Path, asked: Mapping[str, Any], what: str) -> None:
    """Checks that the options stored in a folder equal those requested.

    Raises:
        OutputError: The options differ, or the file is damaged.
    """
    with foreign_file(f"{str(file)!r} is damaged", OutputError):
        found = _flat(json.loads(file.read_text()))
    for name, here in _flat(json.loads(json.dumps(asked))).items():
        there = found.get(name)
        if there != here:
            raise OutputError(
                f"{str(file.parent)!r} holds a {what} with {name} {there!r}, not {here!r}; choose "
                "another folder, or ask for the same to continue it"
            )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's values and the other options in one mapping, without those that affect no result."""
    recipe = dict(identity["recipe"])
    values = {"recipe name": recipe.pop("name"), **recipe, **identity}
    ignored = ("recipe", "guessed", "source", "probekit")
    return {name: value for name, value in values.items() if name not in ignored}
