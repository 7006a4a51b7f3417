"""Runs a model over data: batches in, labeled tables of every layer out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from probekit.capture.compiled import ForwardPass
from probekit.capture.layers import Layer, check_reached, runnable, uncompiled
from probekit.capture.plan import scout_layers
from probekit.capture.readouts import Readout, Tap
from probekit.capture.recorder import Layers, Tokens
from probekit.checks import one_of
from probekit.data.batches import Batch, Batches
from probekit.data.datasets import is_loadable, load_data, trained_on
from probekit.data.decoding import ImageDecoder
from probekit.data.fitting import fit_to
from probekit.data.images import LabeledImages
from probekit.errors import DataError, warn
from probekit.models.image_model import Model, ModelOrName, as_module, borrow
from probekit.models.inputs import call, explained_failure, not_finite
from probekit.models.loading import load_model
from probekit.runtime.processes import processes
from probekit.runtime.progress import progress_bar
from probekit.runtime.settings import caller_device

Precision: TypeAlias = Literal["bfloat16", "float16"]
Observe: TypeAlias = "Callable[..., Iterator[Observed]]"

_FEW = 2


@dataclass(frozen=True)
class PassOptions:
    """Options for running a model and recording its layers.

    Attributes:
        tokens: The tokens of a sequence to use: all, the patch tokens or the class token.
        output: The tensor to record if a layer returns several.
        device: The device to run on; None uses the model's device.
        progress: Show a progress bar if the output is a terminal.
        precision: None runs the model unchanged; otherwise, `torch.autocast` uses this type.
        compile: Compile the model together with the recording hooks.
    """

    tokens: Tokens = "all"
    output: int | str | None = None
    device: str | torch.device | None = None
    progress: bool = True
    precision: Precision | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        one_of("precision", self.precision, (None, *get_args(Precision)))

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of one forward pass, which casts copies of the weights."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.precision))


@dataclass(frozen=True)
class Observed:
    """The results of one batch: samples, model output, and one table per layer for each source."""

    batch: Batch
    output: Any
    tables: Sequence[dict[str, Tensor]]


def open_model_and_data(model: ModelOrName, data: Any, **options: Any) -> tuple[Model, Batches]:
    """Returns a model and batches of data, from objects or from their names."""
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    as_module(model)
    if is_loadable(data):
        data = load_data(data, model, attributes=options.pop("attributes", None))
    _warn_of_training_images(model, data)
    if not isinstance(data, Batches):
        data = Batches(data, fit=fit_to(model), decode=ImageDecoder.of(model), **options)
    return model, data


def _warn_of_training_images(model: Model, data: Any) -> None:
    """Warns if a model of a training run is measured on its training images or a changed test split."""
    while hasattr(data, "dataset"):
        data = data.dataset
    split, name = (getattr(data, fact, None) for fact in ("split", "name"))
    trained = trained_on(model)
    if trained is None or not isinstance(name, str):
        return
    # Hashes of the training and of the test split in turn.
    known = str(getattr(model, "provenance", {}).get("data", "")).split()
    content = data.content_of(range(len(data))) if isinstance(data, LabeledImages) else ""
    if content in known[::2] or (name == trained and split in ("train", "all")):
        warn(
            f"the model was trained on images of {trained}, and its split {split or 'train'!r} contains "
            "them, so accuracy is too high; measure the split 'test'"
        )
    folder = Path(name).resolve() == Path(trained, "test").resolve()
    tested = folder or (name == trained and split == "test")
    if tested and content and known and content not in known[1::2]:
        warn(
            f"the split 'test' of {name} holds other images than when the model was trained and tested; "
            "give the same files, with root=DIR (--data-root)"
        )


def find_layers(
    model: Model, batches: Batches, layers: Layers, options: PassOptions
) -> list[Layer]:
    """Returns the selected layers, found with one forward pass over the first two images."""
    return explore(model, batches, layers, options)[0]


def explore(
    model: Model, batches: Batches, layers: Layers, options: PassOptions
) -> tuple[list[Layer], Any]:
    """Returns the selected layers and the model's output for two images."""
    with borrow(model, options.device):
        images = batches.peek().images[:2]
        with explained_failure(images):
            return scout_layers(model, images, layers, tokens=options.tokens, output=options.output)


def peek_output(model: Model, batches: Batches, options: PassOptions) -> Any:
    """Returns the model's output for an image twice, or once if the batch size is 1."""
    with borrow(model, options.device) as device, torch.no_grad():
        images = batches.peek().images[[0] * min(2, batches.part.size)].to(device)
        with explained_failure(images), uncompiled(), caller_device():
            return call(runnable(model), images)


@contextmanager
def stream(
    model: Model,
    batches: Batches,
    layers: Sequence[Layer],
    readouts: Sequence[Readout],
    options: PassOptions,
    title: str = "analyze",
) -> Iterator[Iterator[Observed]]:
    """Runs a model over data once, with hooks that are removed when the context exits.

    With several processes, each process runs over its share of the data. Yields an iterator over the
    results of each batch, with tables in the order of `readouts`.
    """
    with streams(model, layers, readouts, options, batches.indices()) as observe:
        yield observe(batches, title)
    batches.skipped = sum(processes().gather(batches.skipped))


@contextmanager
def streams(
    model: Model,
    layers: Sequence[Layer],
    readouts: Sequence[Readout],
    options: PassOptions,
    samples: Tensor | None = None,
) -> Iterator[Observe]:
    """Like `stream`, for several passes that share the hooks and the compiled model.

    Yields a function from data and the title of the progress bar to the results of each batch. The model
    runs on the batches that `expand` makes of each batch of the data, `times` of them.
    """
    order = sorted(range(len(readouts)), key=lambda i: readouts[i].own_pass)
    with ExitStack() as stack:
        device = stack.enter_context(borrow(model, options.device))
        stack.enter_context(torch.no_grad())
        taps = {
            i: stack.enter_context(
                readouts[i].open(
                    model, layers, samples=samples, tokens=options.tokens, output=options.output
                )
            )
            for i in order
        }
        watching = [taps[i] for i in order if not readouts[i].own_pass]

        def recorded() -> list[dict[str, Tensor]]:
            nothing = torch.empty(0)
            return [tap(nothing, nothing) for tap in watching]

        forward = ForwardPass(runnable(model), layers, recorded, options.compile)

        def observe(
            batches: Batches,
            title: str,
            expand: Callable[[Batch], Iterable[Batch]] = lambda batch: [batch],
            times: int = 1,
        ) -> Iterator[Observed]:
            together = processes()
            share = batches.share(together.rank, together.world)
            bar = stack.enter_context(
                progress_bar(
                    total=None if batches.samples is None else batches.samples * times,
                    unit="image",
                    desc=f"{title}, compiling first" if forward.compiles else title,
                    progress=options.progress,
                    leave=False,
                )
            )
            begun, waited, done = perf_counter(), 0.0, 0
            coming = stack.enter_context(closing(iter(share)))  # ends its threads and processes
            while True:
                asked = perf_counter()
                read = next(coming, None)
                waited += perf_counter() - asked
                if read is None:
                    break
                for batch in expand(read.to(device)):
                    with _failing_batch(batch), options.autocast(device), caller_device():
                        output = forward(batch.images)
                    begins = not done and len(batch) > _FEW and isinstance(batch.images, Tensor)
                    tables = {
                        i: _few_first(tap, batch, bar.update)
                        if begins and readouts[i].own_pass
                        else tap(batch.images, batch.index)
                        for i, tap in taps.items()
                    }
                    for table in tables.values():
                        _check(table, layers, batch, options.precision)
                    yield Observed(batch, output, [tables[i] for i in range(len(readouts))])
                    done += len(batch)
                    bar.update(done - bar.n)
            bar.close()
            batches.skipped = share.skipped
            batches.seconds, batches.waited = perf_counter() - begun, waited

        yield observe


def _few_first(tap: Tap, batch: Batch, update: Callable[[int], object]) -> dict[str, Tensor]:
    """The table of a tap with passes of its own, which may be long: the bar advances after a few samples."""
    few = tap(batch.images[:_FEW], batch.index[:_FEW])
    update(_FEW)
    rest = tap(batch.images[_FEW:], batch.index[_FEW:])
    return {name: torch.cat([few[name], rest[name]]) for name in few}


@contextmanager
def _failing_batch(batch: Batch) -> Iterator[None]:
    """Adds the samples of a batch to errors of the model."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(
            f"This is an error of the model on {len(batch)} samples between {int(batch.index.min())} and "
            f"{int(batch.index.max())}; it ran on two other samples."
        )
        raise


def _check(
    tables: dict[str, Tensor], layers: Sequence[Layer], batch: Batch, precision: Precision | None
) -> None:
    check_reached(layers, tables)
    for place in not_finite(list(tables.values())):
        name = list(tables)[place]
        raise DataError(
            f"layer {name!r} gives NaN or infinity for samples between {int(batch.index.min())} "
            f"and {int(batch.index.max())}; check the images and the weights"
            + (f", or run without precision={precision!r}" if precision else "")
        )
