"""Recordings: the raw activations, as a labeled table in memory or in a zarr store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.pooling import precise
from probekit.capture.readouts import Activations
from probekit.capture.recorder import Layers, Tokens
from probekit.capture.store import RecordingStore, open_recording
from probekit.capture.stream import Observed, PassOptions, find_layers, open_model_and_data, stream
from probekit.errors import OptionError, keep_notes, noted
from probekit.models.identity import describe, model_identity
from probekit.models.image_model import ModelOrName
from probekit.results.files import writer_of
from probekit.results.labels import strings, with_sample_names
from probekit.results.provenance import provenance
from probekit.runtime.processes import processes
from probekit.runtime.settings import in_own_settings


@in_own_settings
@keep_notes
def record(
    model: ModelOrName,
    data: Any,
    layers: Layers = None,
    *,
    spatial: Literal["mean", "none"] = "mean",
    tokens: Tokens = "all",
    output: int | str | None = None,
    store: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
    compile: bool = False,
) -> xr.Dataset:
    """Records the activations of a model's layers for every sample.

    Args:
        data: As for `analyze`; with `store`, the number of samples must be known in advance.
        spatial: `"mean"` records one number per unit; `"none"` records every element of the map, with its
            position.
        store: A folder (`.zarr`) to record into, block by block. An interrupted recording resumes where it
            stopped, for the same model and data; to compare all of it, the data is read once before the
            pass. None keeps everything in memory.
        overwrite: Start over if the store exists.
        seed: Seed of the sample that `limit` draws.
        model, layers, tokens, output: As for `analyze`.
        batch_size, limit, device, progress, workers, compile: As for `analyze`.

    Returns:
        `activation` (sample, unit), float32, or float64 if a layer is, and `label` (sample; -1 for samples
        without a label or with several attributes), with the coordinates `layer` and `channel` of every
        unit and, for whole maps, `y` and `x` or `token` (-1 if a layer has none), and `class_name` of every
        sample if classes have names. With a store, the dataset is lazy.

    Raises:
        OutputError: The store holds another recording, or cannot be written.
        ProbekitError: As for `analyze`.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> recording = pk.record(model, data, "layer3.2.relu2", limit=20)
        >>> recording["activation"].shape
        (20, 64)
    """
    if spatial not in ("mean", "none"):
        raise OptionError(f"spatial must be 'mean' or 'none' in a recording, not {spatial!r}")
    options = PassOptions(
        tokens=tokens, output=output, device=device, progress=progress, compile=compile
    )
    with noted() as notes:
        model, batches = open_model_and_data(
            model, data, batch_size=batch_size, limit=limit, seed=seed, workers=workers
        )
        found = find_layers(model, batches, layers, options)
    readout = Activations("mean" if spatial == "mean" else "flatten")
    identity = {
        "model": describe(model),
        "data": batches.provenance(),
        "layers": [layer.name for layer in found],
        "spatial": spatial,
        "tokens": tokens,
        "output": output,
        "seed": seed,
    }
    frame = columns(found, spatial, tokens)
    if batches.names:
        frame.attrs["class_names"] = json.dumps(batches.names)
    frame.attrs["provenance"] = provenance(**identity)
    if notes:
        frame.attrs["notes"] = "\n".join(notes)
    if store is None:
        with stream(model, batches, found, [readout], options, "record") as observed:
            tables, labels, index = map(torch.cat, zip(*_rows(observed), strict=True))
        return with_sample_names(
            frame.assign(
                activation=(("sample", "unit"), tables.numpy()), label=("sample", labels.numpy())
            ).assign_coords(sample=index.numpy())
        )
    identity |= {"model": model_identity(model)}
    together = processes()
    with writer_of(store) if together.is_main else nullcontext():
        writer = None
        if together.is_main:
            itemsize = max(4, *(layer.itemsize for layer in found))
            writer = RecordingStore(
                store, frame, batches, identity, itemsize=itemsize, overwrite=overwrite
            )
        state = (writer.done, writer.complete) if writer else (0, False)
        done, complete = together.gather(state)[0]
        if not complete:
            todo = batches.starting(done)
            with (
                noted() as more,
                stream(model, todo, found, [readout], options, "record") as observed,
            ):
                for table, labels, index in _rows(observed):
                    if writer:
                        writer.append(table, labels, index)
            if writer:
                writer.finish([*notes, *more])
            together.gather(None)  # the first process has written everything
        return open_recording(store)


def columns(
    layers: Sequence[Layer], spatial: Literal["mean", "none"], tokens: Tokens = "all"
) -> xr.Dataset:
    """The unit coordinates of a recording of some layers, in the order of its columns."""
    names: list[str] = []
    rows = []
    for layer in layers:
        places = _places(layer, tokens) if spatial == "none" else np.empty((1, 0), np.int64)
        names += [layer.name] * (layer.units * len(places))
        channels = np.repeat(np.arange(layer.units), len(places))
        rows.append(np.column_stack([channels, np.tile(places, (layer.units, 1))]))
    columns = zip(("channel", "y", "x", "token"), np.concatenate(rows).T, strict=False)
    coords = {name: ("unit", values.astype(np.int64)) for name, values in columns}
    return xr.Dataset(coords={"layer": ("unit", strings(names)), **coords})


def _places(layer: Layer, tokens: Tokens) -> np.ndarray[Any, Any]:
    """The y, x and token (positions, 3) of every recorded position of a layer."""
    shape = layer.positions
    places = np.full((prod(shape), 3), -1)
    if len(shape) == 2 and layer.windows == 1:
        places[:, 0], places[:, 1] = np.unravel_index(np.arange(len(places)), shape)
    elif shape:
        places[:, 2] = np.arange(len(places))
    return places[layer.chosen(tokens)] if len(shape) == 1 else places


def _rows(observed: Iterator[Observed]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Activations (batch, units), labels and indices of all processes, in the order of the data."""
    own = (
        (
            torch.cat(
                [table.to(precise(table.dtype)) for table in one.tables[0].values()], 1
            ).cpu(),
            one.batch.of(None).labels.cpu(),
            one.batch.index,
        )
        for one in observed
    )
    if processes().world == 1:
        yield from own
        return
    for parts in processes().in_step(own):
        table, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
        order = index.argsort(stable=True)
        yield table[order], labels[order], index[order]
