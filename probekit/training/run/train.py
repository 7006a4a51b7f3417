"""Training of a network with raised or lowered class selectivity."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from probekit._version import __version__
from probekit.capture.selection import layer_names
from probekit.checks import integer, number
from probekit.data.datasets import list_data
from probekit.errors import OptionError, OutputError, ProbekitError
from probekit.results.folders import claim, locked
from probekit.runtime.processes import Machine
from probekit.runtime.settings import in_own_settings
from probekit.training.regularizer.schedule import AlphaSchedule
from probekit.training.run.callbacks import Callback, chosen_callbacks
from probekit.training.run.directory import IGNORED, RUN, Run, read_card, read_run
from probekit.training.run.loop import TrainingLoop
from probekit.training.run.minibatches import load_run_data
from probekit.training.run.recipes import Precision, Recipe, get_recipe

# The precisions of `accelerate launch --mixed_precision`.
_LAUNCHED_WITH = {"bf16": "bfloat16", "fp16": "float16"}


@in_own_settings
def train(
    recipe: str | Recipe,
    alpha: float = 0.0,
    seed: int = 0,
    out: str | Path = "run",
    *,
    epochs: int | None = None,
    data_root: str | Path | None = None,
    device: str | torch.device | None = None,
    layers: str | Sequence[str] | None = None,
    alpha_schedule: str | AlphaSchedule | None = None,
    precision: Precision | None = None,
    channels_last: bool | None = None,
    workers: int = 0,
    checkpoint_minutes: float = 10.0,
    cuda_graph: bool = True,
    callbacks: Sequence[Callback | str] = (),
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Trains a network; resumes an interrupted run, and returns a finished run without training.

    The loss is the cross-entropy - alpha * mean class selectivity of the batch. The folder holds
    `model.json` and the weights of the epoch with the best validation accuracy (which `load_model`
    reads), `final.safetensors` (the weights of the last epoch), `last.safetensors` (the checkpoint to
    resume from), `log.jsonl` and `log.csv`. On a CPU, with the same number of threads, a run that was
    interrupted and resumed ends with bit-identical weights to one that was not.

    Args:
        recipe: A name (`list_recipes()`) or a `Recipe`.
        alpha: Below 0 lowers selectivity, above 0 raises it, 0 does not change the loss.
        seed: Seed of initialization, held-out images, data order and augmentation.
        out: The folder of the run.
        epochs: Number of epochs; None uses the recipe's.
        data_root: Folder of the data set's files.
        device: Where to train; None uses the device that `accelerate` selects.
        layers: The layers to regularize, as for `SelectivityRegularizer`: names, globs, `"first:3"`,
            `"last:3"` or `"but-last-stage"`. Selectivity is logged for all layers.
        alpha_schedule: Alpha over the epochs instead of a constant, such as `"0*5 -20*15"`.
        precision: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`; None uses the recipe's. `"auto"`
            selects bfloat16 on a CPU with AVX-512 and on a GPU that supports it, and float32 otherwise;
            the card of the run and the progress bar show the selected precision.
        channels_last: Memory layout; None uses the recipe's.
        workers: Number of threads or processes that decode image files while data is loaded.
        checkpoint_minutes: Minutes between checkpoints within a long epoch. A checkpoint is always
            written after each epoch.
        cuda_graph: On a CUDA GPU, run the forward and backward pass of each step as one CUDA graph, which
            replaces about a thousand kernel launches. Only for one process and float32 or bfloat16.
        callbacks: `Callback` objects, or names: `"tensorboard"` (event files in `tensorboard/`), `"wandb"`
            or `"mlflow"`.
        progress: Show a progress bar when on a terminal.
        **overrides: Any other field of the recipe.

    Returns:
        The finished run, with test accuracy and selectivity of the best epoch.

    Raises:
        OptionError: The recipe is unknown or an option is invalid.
        DataError: Files of the data set are missing.
        OutputError: The folder holds another run or something else, or cannot be written.
        ProbekitError: The loss became NaN, or the device has too little memory.

    Source:
        Leavitt & Morcos 2020 (arXiv 2003.01262).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train("resnet20-digits", alpha=-1.0, out=folder, epochs=1, limit=64,
        ...                 architecture="resnet8", device="cpu", progress=False)
        >>> run.alpha, run.best_epoch, 0 <= run.selectivity_mean <= 1
        (-1.0, 0, True)
    """
    launched = _LAUNCHED_WITH.get(os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower())
    given = {"epochs": epochs, "precision": precision or launched, "channels_last": channels_last}
    overrides |= {name: value for name, value in given.items() if value is not None}
    chosen = get_recipe(recipe, **overrides)
    for name, value in (("seed", seed), ("workers", workers)):
        integer(name, value, least=0, most=2**63 - 1)
    if checkpoint_minutes != float("inf"):
        number("checkpoint_minutes", checkpoint_minutes, least=0)
    following = chosen_callbacks(callbacks)
    machine = Machine.here(device)
    chosen = chosen.on(machine.device)
    names = layer_names(layers, "a training run")
    schedule = _schedule(alpha, alpha_schedule)
    identity = {
        "recipe": chosen.facts(),
        "alpha_schedule": str(schedule),
        "seed": seed,
        "layers": names,
        "probekit": __version__,
    }
    folder = Path(out)
    with ExitStack() as stack:
        if machine.is_main:
            stack.enter_context(locked(folder / RUN))
            claim(folder / RUN, identity, "training run", ignored=IGNORED)
        machine.wait()
        done = read_run(folder)
        if done is not None:
            check_same_data([folder], chosen, data_root, workers)
            return done
        gpus = [machine.device] if machine.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        data = load_run_data(chosen, seed, data_root, workers)
        loop = TrainingLoop(
            folder,
            chosen,
            schedule,
            seed,
            data,
            machine,
            data_root=_absolute(data_root),
            # A single string may select several layers, for example "last:3".
            layers=names[0] if names and len(names) == 1 else names,
            checkpoint_minutes=checkpoint_minutes,
            cuda_graph=cuda_graph,
        )
        stack.callback(loop.close)
        with _memory_error_explained(chosen, machine.device):
            loop.run(following, progress=progress)
        machine.wait()
    if (finished := read_run(folder)) is None:
        raise ProbekitError(f"the run in {str(folder)!r} ended without a finished card")
    return finished


@contextmanager
def _memory_error_explained(recipe: Recipe, device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # OutOfMemoryError is one
        known = isinstance(error, torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):
            raise
        raise ProbekitError(
            f"{device} has too little memory for {recipe.architecture} with "
            f"batch_size={recipe.batch_size} and precision={recipe.precision!r}; lower "
            "batch_size, or use precision='bfloat16' (into a new folder)"
        ) from None


def check_same_data(
    folders: Iterable[Path], recipe: Recipe, root: str | Path | None, workers: int
) -> None:
    """Checks that finished runs were trained on the images found now, if these may be others.

    They may be in a folder of images, and in another folder of a named data set than the runs name.
    """
    cards = {folder: read_card(folder) for folder in folders}
    files = recipe.data not in list_data()
    others = [
        folder
        for folder, card in cards.items()
        if "data" in card and (files or (root is not None and _absolute(root) != card["data_root"]))
    ]
    found = load_run_data(recipe, 0, root, workers).fingerprint if others else ""
    for folder in others:
        if not found.startswith(cards[folder]["data"]):  # older cards have fewer hashes
            raise OutputError(
                f"the run in {str(folder)!r} was trained on other images than those in "
                f"{str(root or recipe.data)!r}; give the same images, or choose another folder"
            )


def _absolute(root: str | Path | None) -> str | None:
    return None if root is None else str(Path(root).resolve())


def _schedule(alpha: float, schedule: str | AlphaSchedule | None) -> AlphaSchedule:
    constant = AlphaSchedule.constant(alpha)
    if schedule is None:
        return constant
    if alpha != 0:
        raise OptionError(
            f"alpha={alpha} and alpha_schedule={str(schedule)!r} exclude each other; give one"
        )
    return schedule if isinstance(schedule, AlphaSchedule) else AlphaSchedule.parse(schedule)
