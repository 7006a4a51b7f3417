"""Plots of training logs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probekit.errors import DataError, OptionError, some_of
from probekit.plot.canvas import canvas
from probekit.plot.colors import palette, shades
from probekit.plot.data import Array, NamedResults, named_items
from probekit.plot.labels import axis_label, depth_bar, key
from probekit.plot.series import DASHES, curve, name_dashes, name_results, result_colors

Records: TypeAlias = "list[dict[str, Any]]"
Run: TypeAlias = "str | os.PathLike[str]"  # a run, its folder or its log


def training_curves(
    run: Run | Mapping[Any, Run | Sequence[Run]],
    variables: str | Sequence[str] = ("accuracy", "validation_accuracy"),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Variables in the log of a training run over epochs.

    Args:
        run: The output of `train`, the folder of a run, its `log.jsonl`, or the `log.csv` beside it;
            `{name: run}` compares several runs, `{alpha: run}` colors them by alpha, `{name: [run, ...]}`
            draws the mean over seeds with its bootstrapped 95% interval.
        variables: Names in the log, such as `loss`, `validation_accuracy`, `selectivity_mean`, `alpha`;
            or one variable logged per layer, `selectivity` or `dead_units`, which is drawn as one line
            per layer.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no log, or it lacks a variable.
        OptionError: A per-layer variable is combined with others, or requested for several runs.

    Example:
        >>> import json
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = [json.dumps({"epoch": at, "loss": 1 / (at + 1)}) for at in range(3)]
        ...     _ = Path(folder, "log.jsonl").write_text("\\n".join(lines))
        ...     training_curves(folder, "loss").lines[0].get_xdata()
        array([1., 2., 3.])
    """
    wanted = [variables] if isinstance(variables, str) else list(variables)
    compared = named_items(run, _read)
    if any(isinstance(compared.first[0].get(name), Mapping) for name in wanted):
        return _by_layer(compared, wanted, ax)
    colors = palette(len(wanted)) if compared.single else result_colors(compared)
    with canvas(ax, 3.3, 2.4) as ax:
        handles = []
        for number, replicates in enumerate(compared.results.values()):
            epochs = min(map(len, replicates))
            x = np.array([record["epoch"] + 1 for record in replicates[0][:epochs]], float)
            for which, name in enumerate(wanted):
                values = np.stack([_column(one[:epochs], name) for one in replicates])
                color = colors[which if compared.single else number]
                dashes = DASHES[which % 4]
                handles.append(curve(ax, x, values, color, markers=epochs == 1, dashes=dashes))
        _label_axes(ax, wanted)
        labels = [_label(name) for name in wanted]
        if not compared.single:
            name_results(ax, compared, colors, handles[:: len(wanted)])
            name_dashes(ax, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        elif len(wanted) > 1:
            key(ax, handles, labels)
    return ax


def _by_layer(compared: NamedResults[Records], wanted: list[str], ax: Axes | None) -> Axes:
    name, records = wanted[0], compared.first
    if len(wanted) > 1 or not compared.single:
        raise OptionError(
            f"{name!r} has a value for each layer and is drawn alone, for one run; its mean over layers "
            "is 'selectivity_mean'"
        )
    layers = list(records[0][name])
    x = np.array([record["epoch"] + 1 for record in records], float)
    with canvas(ax, 3.5, 2.4) as ax:
        for layer, color in zip(layers, shades(len(layers)), strict=True):
            ax.plot(x, [record[name][layer] for record in records], color=color, lw=1)
        depth_bar(ax, layers)
        _label_axes(ax, wanted)
    return ax


def _label_axes(ax: Axes, wanted: Sequence[str]) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(wanted) == 1:
        ax.set_ylabel(_label(wanted[0]))
    elif all("accuracy" in name for name in wanted):
        ax.set_ylabel("accuracy")
    elif all("loss" in name for name in wanted):
        ax.set_ylabel("loss")


def _label(name: str) -> str:
    """The label of a variable in the log; variables of the training images are marked as such."""
    return axis_label(f"training_{name}" if name in ("accuracy", "loss") else name)


def _column(records: Records, name: str) -> Array:
    if not any(name in record for record in records):
        raise DataError(
            f"the log of the run has no {name!r}, it has {some_of(list(records[0]), 30)}"
        )
    values = [record.get(name) for record in records]
    try:
        return np.array([np.nan if value is None else float(value) for value in values])
    except (TypeError, ValueError):
        raise DataError(f"{name!r} in the log of the run is not a number in each epoch") from None


def _read(run: object, name: object = None) -> Records:
    """The records of a run's log, one per epoch."""
    place = getattr(run, "folder", run)
    if not isinstance(place, str | Path):
        raise OptionError(
            f"a training run is the output of train, a run's folder or its log, not {type(run).__name__}"
        )
    path = Path(place)
    path = path.parent if path.name == "log.csv" else path
    path = path / "log.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"there is no log of a training run at {str(path)!r}")
    try:
        from probekit.training.run.log import read_log

        records = read_log(path)
    except (OSError, ValueError):
        records = []
    if not records or any("epoch" not in record for record in records):
        raise DataError(f"{str(path)!r} holds no finished epoch of a training run")
    return records
