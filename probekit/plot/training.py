"""Plots of training logs, and of sweeps over alpha: the effect of lower or higher selectivity."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from probekit.errors import DataError, OptionError, some_of
from probekit.plot.canvas import canvas
from probekit.plot.colors import palette, shades
from probekit.plot.data import Array, NamedResults, match_layers, named_items, numbers_over
from probekit.plot.labels import alpha_bar, axis_label, depth_bar, key, layer_axis, room
from probekit.plot.series import (
    DASHES,
    alpha_colors,
    curve,
    name_dashes,
    name_results,
    replicate_means,
    result_colors,
)

Records: TypeAlias = "list[dict[str, Any]]"
Run: TypeAlias = "str | os.PathLike[str]"  # a run, its folder or its log


def alpha_curve(
    sweep: xr.Dataset, variable: str = "test_accuracy", *, ax: Axes | None = None
) -> Axes:
    """A variable over alpha: the mean over seeds with its bootstrapped 95% interval.

    The alpha axis is symmetric logarithmic if alpha spans more than a factor of four. The thin line
    marks the value at alpha 0.

    Args:
        sweep: The output of `sweep`: a dataset with the dimension `alpha` and, for several seeds,
            `seed`. To draw one side only, select it, as in `sweep.sel(alpha=slice(None, 0))`.
        variable: Name of a variable (alpha, seed).
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no alpha.

    Example:
        >>> sweep = xr.Dataset({"test_accuracy": ("alpha", [0.8, 0.9, 0.7])}, {"alpha": [-1.0, 0.0, 1.0]})
        >>> alpha_curve(sweep).get_ylabel()
        'test accuracy'
    """
    values, alphas = _values(sweep, variable)
    mean, low, high = replicate_means(values)
    colors = alpha_colors(alphas)
    with canvas(ax, 3.3, 2.4) as ax:
        if 0.0 in alphas:
            ax.axhline(mean[alphas.index(0.0)], color="#BBBBBB", lw=0.8, zorder=0)
        ax.plot(alphas, mean, color="#999999", lw=0.9, zorder=1)
        ax.vlines(alphas, low, high, color=colors, lw=1.6, zorder=2)
        ax.scatter(alphas, mean, s=18, c=colors, lw=0, zorder=3)
        _alpha_axis(ax, alphas)
        ax.set_ylabel(axis_label(sweep[variable]))
    return ax


def alpha_trade_off(
    sweep: xr.Dataset,
    x: str = "selectivity_mean",
    y: str = "test_accuracy",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Two variables of a sweep plotted against each other, colored by alpha.

    Small dots are runs. Large dots are means over seeds, connected in the order of alpha, with
    bootstrapped 95% intervals in both directions.

    Args:
        sweep: The output of `sweep`.
        x: Name of a variable (alpha, seed).
        y: Name of another variable (alpha, seed).
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no alpha.

    Example:
        >>> sweep = xr.Dataset(
        ...     {"test_accuracy": ("alpha", [0.8, 0.9]), "selectivity_mean": ("alpha", [0.2, 0.4])},
        ...     {"alpha": [-1.0, 0.0]},
        ... )
        >>> alpha_trade_off(sweep).get_xlabel()
        'selectivity mean'
    """
    (across, own), (up, others) = _values(sweep, x), _values(sweep, y)
    alphas = [alpha for alpha in own if alpha in others]
    if not alphas:
        raise DataError(f"no run of the sweep has both {x!r} and {y!r}")
    across = across[:, [own.index(alpha) for alpha in alphas]]
    up = up[:, [others.index(alpha) for alpha in alphas]]
    colors = alpha_colors(alphas)
    x_mean, x_low, x_high = replicate_means(across)
    y_mean, y_low, y_high = replicate_means(up)
    with canvas(ax, 3.4, 2.5) as ax:
        if len(across) > 1:
            for column, color in enumerate(colors):
                ax.scatter(across[:, column], up[:, column], s=5, color=color, alpha=0.5, lw=0)
        ax.plot(x_mean, y_mean, color="#999999", lw=0.9, zorder=1)
        ax.hlines(y_mean, x_low, x_high, color=colors, lw=1.2, zorder=2)
        ax.vlines(x_mean, y_low, y_high, color=colors, lw=1.2, zorder=2)
        ax.scatter(x_mean, y_mean, s=22, c=colors, lw=0, zorder=3)
        alpha_bar(ax, alphas, colors)
        ax.set_xlabel(axis_label(sweep[x]))
        ax.set_ylabel(axis_label(sweep[y]))
    return ax


def alpha_profile(
    sweep: xr.Dataset,
    variable: str = "selectivity",
    *,
    layers: str | Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A variable by layer, one line per alpha: the mean over seeds with its 95% interval.

    Args:
        sweep: The output of `sweep`.
        variable: Name of a variable (alpha, seed, layer).
        layers: Names or globs of layers; None for all.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no alpha.

    Example:
        >>> sweep = xr.Dataset(
        ...     {"selectivity": (("alpha", "layer"), [[0.1, 0.2], [0.3, 0.4]])},
        ...     {"alpha": [-1.0, 0.0], "layer": ["relu", "relu_1"]},
        ... )
        >>> len(alpha_profile(sweep).lines)
        2
    """
    values, alphas = _values(sweep, variable, "layer")
    names = [str(one) for one in sweep["layer"].values]
    chosen = match_layers(names, layers)
    rows = [names.index(name) for name in chosen]
    colors = alpha_colors(alphas)
    with canvas(ax, min(max(3.2, 1.2 + 0.19 * len(chosen)), 9.0), 1.7 + room(chosen)) as ax:
        x = np.arange(len(chosen), dtype=np.float64)
        for at, color in enumerate(colors):
            curve(ax, x, values[:, at][:, rows], color)
        layer_axis(ax, chosen)
        alpha_bar(ax, alphas, colors)
        ax.set_ylabel(axis_label(sweep[variable]))
    return ax


def _values(sweep: object, variable: str, *others: str) -> tuple[Array, list[float]]:
    """Values (seed, alpha, ...) and the alphas, without alphas that have no values."""
    if not isinstance(sweep, xr.Dataset):
        raise OptionError(
            f"sweep must be the dataset that pk.sweep returns, not {type(sweep).__name__}"
        )
    values = numbers_over(sweep, "sweep", variable, "alpha", *others).sortby("alpha")
    if sweep[variable].dtype.kind == "i":
        values = values.where(values >= 0)  # -1 for runs without a value in older files
    if "seed" not in values.dims:
        values = values.expand_dims("seed")
    numbers = values.transpose("seed", "alpha", *others).values.astype(np.float64)
    measured = np.isfinite(numbers).any(axis=(0, *range(2, numbers.ndim)))
    if not measured.any():
        raise DataError(f"no run of the sweep has a value of {variable!r} yet")
    return numbers[:, measured], values["alpha"].values[measured].astype(float).tolist()


def _alpha_axis(ax: Axes, alphas: list[float]) -> None:
    sizes = [abs(alpha) for alpha in alphas if alpha]
    if sizes and max(sizes) > 4 * min(sizes):
        ax.set_xscale("symlog", linthresh=min(sizes), linscale=0.6)
    ax.set_xlabel("α")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator(_apart(ax, alphas)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))


def _apart(ax: Axes, alphas: list[float]) -> list[float]:
    """The alphas to label: zero, the ends, and those between that do not overlap."""
    at = {alpha: float(ax.transData.transform((alpha, 0))[0]) for alpha in alphas}
    width = max(max(at.values()) - min(at.values()), 1e-9)
    kept: list[float] = []
    for alpha in sorted(alphas, key=lambda one: (one != 0, -abs(one))):
        if all(abs(at[alpha] - at[other]) > 0.1 * width for other in kept):
            kept.append(alpha)
    return sorted(kept)


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
        from probekit.training.run.directory import read_log

        records = read_log(path)
    except (OSError, ValueError):
        records = []
    if not records or any("epoch" not in record for record in records):
        raise DataError(f"{str(path)!r} holds no finished epoch of a training run")
    return records
