"""The folder of a training run: whose it is, who writes to it, and what came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from probekit._version import __version__
from probekit.errors import OptionError, OutputError, foreign_file
from probekit.results.files import DRAFT, remove_drafts
from probekit.training.run.checkpoint import write_text

__all__ = [
    "Run",
    "check_same",
    "claim",
    "foreign_files",
    "layer_names",
    "locked",
    "read_run",
    "refuse_foreign",
]

CARD = "model.json"
IDENTITY = "run.json"
LAST = "last.safetensors"
FINAL = "final.safetensors"
LOCK = ".lock"


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: Where it is; `load_model(folder)` gives its best epoch.
        recipe: Name of the recipe.
        alpha: The regularizer's weight; None where it followed a schedule.
        alpha_schedule: The weight over the epochs, as text.
        seed: Of the run.
        epochs: How many epochs were trained.
        best_epoch: The epoch, from 0, with the highest validation accuracy; the last one where
            nothing was held out.
        validation_accuracy: Of the best epoch; None where nothing was held out.
        test_accuracy: Of the best epoch, on the test split.
        selectivity_mean: Of the best epoch: mean over layers of the mean over units of class
            selectivity on the test split.
        selectivity: The mean over the units of each layer.
        dead_units: Dead units of each layer.
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

    @property
    def log(self) -> pd.DataFrame:
        """One row an epoch."""
        return pd.read_csv(self.folder / "log.csv")


def read_run(folder: str | Path) -> Run | None:
    """The finished run in a folder; None where there is none or it has not ended.

    Raises:
        OutputError: Its card is damaged.
    """
    folder = Path(folder)
    card = folder / CARD
    if not card.is_file():
        return None
    with foreign_file(f"{str(card)!r} is not the card of a training run", OutputError):
        facts = json.loads(card.read_text())
        if not facts["finished"]:
            return None
        return Run(
            folder=folder,
            recipe=facts["recipe"]["name"],
            alpha=facts["alpha"],
            alpha_schedule=facts["alpha_schedule"],
            seed=facts["seed"],
            epochs=facts["recipe"]["epochs"],
            best_epoch=facts["best_epoch"],
            validation_accuracy=facts["validation_accuracy"],
            test_accuracy=facts["test_accuracy"],
            selectivity_mean=facts["selectivity_mean"],
            selectivity=facts["selectivity"],
            dead_units=facts["dead_units"],
        )


def refuse_foreign(folder: Path) -> None:
    """Looks at a folder, and changes nothing, before a run takes it.

    Raises:
        OutputError: There is something in it and it is no training run.
    """
    if not os.path.isdir(folder) or (folder / IDENTITY).is_file():
        return
    if others := foreign_files(folder):
        raise OutputError(
            f"{str(folder)!r} is not a training run and not empty (it holds {others[0]}); choose "
            "another folder"
        )


def foreign_files(folder: Path) -> list[str]:
    """What lies in a folder, but for what a start that was cut off can have left there."""
    names = (path.name for path in folder.iterdir()) if os.path.isdir(folder) else ()
    return sorted(name for name in names if name != LOCK and not name.startswith(DRAFT))


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Makes a folder that of one run, or finds that it is already.

    Args:
        folder: That exists.
        identity: All that decides what the run becomes.

    Raises:
        OutputError: The folder holds a run of another recipe, seed or alpha.
    """
    file = folder / IDENTITY
    if file.is_file():
        check_same(file, identity, "run")
    else:
        write_text(file, json.dumps({**identity, "probekit": __version__}, indent=2) + "\n")


def layer_names(layers: Any) -> list[str] | None:
    """A choice of layers as names that can be written to a folder.

    Raises:
        OptionError: Types or predicates, which cannot.
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
    """Compares what a folder was begun with and what is asked for, in all that matters.

    Args:
        file: Holds the former, as JSON.
        asked: `recipe`, its facts, and other facts.
        what: `run` or `sweep`.

    Raises:
        OutputError: They differ, or the file is damaged.
    """
    with foreign_file(f"{str(file)!r} is damaged", OutputError):
        found = _flat(json.loads(file.read_text()))
    for name, here in _flat(json.loads(json.dumps(asked))).items():
        there = found.get(name)
        if there != here:
            raise OutputError(
                f"{str(file.parent)!r} holds a {what} with {name} {there!r}, not {here!r}; choose "
                "another folder, or ask for the same to go on with it"
            )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's values and the other facts side by side, without what is only said about them."""
    recipe = dict(identity["recipe"])
    values = {"recipe name": recipe.pop("name"), **recipe, **identity}
    said = ("recipe", "guessed", "source", "probekit")
    return {name: value for name, value in values.items() if name not in said}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder; the lock goes with the process, however it ends.

    Raises:
        OutputError: Another process is training in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / LOCK).open("w")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(folder)!r} cannot be written: {reason}") from None
    with opened as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another process is training in {str(folder)!r}; wait for it, or choose another "
                "folder"
            ) from None
        except (ImportError, OSError):
            # No such locks on this system or file system: the run goes on without.
            pass
        remove_drafts(folder)
        yield
