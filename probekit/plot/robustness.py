"""Plots of accuracy under attacks and corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from probekit.checks import one_of
from probekit.errors import DataError, OptionError, close_matches, some_of
from probekit.plot.canvas import canvas
from probekit.plot.colors import palette, shades
from probekit.plot.data import Array, NamedResults, Results, named_results, shared_labels, table
from probekit.plot.labels import Handle, key, name_axis, title
from probekit.plot.series import DASHES, curve, name_dashes, name_results, result_colors
from probekit.replicates.intervals import resampled_mean
from probekit.results.trees import Result

Over: TypeAlias = Literal["epsilon", "step"]
Tables: TypeAlias = list[list[xr.Dataset]]


def attack_accuracy(
    result: Results,
    *,
    over: Over = "epsilon",
    attack: str | None = None,
    epsilon: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy under attack, over the radius of the attack or over its steps.

    Over epsilon, the curve starts at the clean accuracy. Epsilon is shown in units of 1/255 if all radii
    are multiples of it.

    Args:
        result: A result of `robustness` with attacks; `{name: result}` compares several,
            `{name: [result, ...]}` draws the mean over replicates with its bootstrapped 95% interval.
        over: `"epsilon"` or `"step"`.
        attack: Name of an attack; None for all (over steps: all that have steps).
        epsilon: Radius of the curve over steps; None for all radii of a single result, or the largest
            radius for several results.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result has no attacks, or no steps.
        OptionError: There is no such attack or epsilon.

    Example:
        >>> table = xr.Dataset(
        ...     {"attack_accuracy": (("attack", "epsilon"), [[0.5, 0.2]]), "clean_accuracy": 0.9},
        ...     {"attack": ["fgsm"], "epsilon": [1 / 255, 4 / 255]},
        ... )
        >>> attack_accuracy(table).lines[0].get_ydata()
        array([0.9, 0.5, 0.2])
    """
    one_of("over", over, get_args(Over))
    if over == "epsilon" and epsilon is not None:
        raise OptionError(
            "epsilon selects a radius for over='step'; over='epsilon' shows all of them"
        )
    compared = named_results(result)
    name = "attack_accuracy" if over == "epsilon" else "attack_accuracy_by_step"
    tables = compared.each(lambda one: _outcomes(one, name, attack))
    with canvas(ax, 3.2, 2.4) as ax:
        if over == "epsilon":
            _over_epsilon(ax, compared, tables)
        else:
            _over_steps(ax, compared, tables, epsilon)
        ax.set_ylabel("accuracy under attack")
        ax.set_ylim(0, 1.02)
    return ax


def _outcomes(result: Result, name: str, attack: str | None) -> xr.Dataset:
    outcomes = table(result, "attack")
    if name not in outcomes:
        raise DataError(
            "the result has no attacks; ask robustness for some, such as attacks=['fgsm', 'pgd']"
            if "attack_accuracy" not in outcomes
            else "no attack of this result records its accuracy after each step; use pk.PGD"
        )
    names = [str(one) for one in outcomes["attack"].values]
    if attack is not None and attack not in names:
        raise OptionError(
            f"the result has no attack {attack!r}; {close_matches(attack, names, what='attack')}"
        )
    chosen = [at for at, one in enumerate(names) if attack in (None, one)]
    return outcomes.isel(attack=chosen).transpose("attack", "epsilon", ..., missing_dims="ignore")


def _over_epsilon(ax: Axes, compared: NamedResults[Result], tables: Tables) -> None:
    every = [one for replicates in tables for one in replicates]
    attacks = shared_labels(every, "attack")
    scale, unit = _radius_unit(np.concatenate([one["epsilon"].values for one in every]))
    colors = palette(len(attacks)) if compared.single else result_colors(compared)
    handles = []
    for number, replicates in enumerate(tables):
        for which, attack in enumerate(attacks):
            series = which if compared.single else number
            curves = [_with_clean(one, attack) for one in replicates]
            radii = np.unique(np.concatenate([list(one) for one in curves]))
            values = np.array([[one.get(radius, np.nan) for radius in radii] for one in curves])
            known = np.isfinite(values).any(0)
            handles.append(
                curve(
                    ax, radii[known] * scale, values[:, known], colors[series],
                    number=series, dashes=DASHES[which % 4],
                )
            )  # fmt: skip
    ax.set_xlabel(f"ε{unit}")
    ax.set_xlim(left=0)
    if compared.single:
        key(ax, handles, attacks)
    else:
        _name_all(ax, compared, colors, handles, attacks)


def _with_clean(outcomes: xr.Dataset, attack: str) -> dict[float, float]:
    """Accuracy at each radius, with the clean accuracy at 0."""
    values = outcomes["attack_accuracy"].sel(attack=attack).dropna("epsilon")
    clean = {0.0: float(outcomes["clean_accuracy"])} if "clean_accuracy" in outcomes else {}
    return clean | dict(zip(values["epsilon"].values.tolist(), values.values.tolist(), strict=True))


def _over_steps(
    ax: Axes, compared: NamedResults[Result], tables: Tables, epsilon: float | None
) -> None:
    every = [one for replicates in tables for one in replicates]
    steps = {
        name: [one["attack_accuracy_by_step"].sel(attack=name) for one in every]
        for name in shared_labels(every, "attack")
    }
    attacks = [
        name
        for name, all_values in steps.items()
        if all(np.isfinite(values.values[..., 2:]).any() for values in all_values)
    ]
    if not attacks:
        raise DataError("no attack of this result takes several steps; use pk.PGD")
    radii = _radii(every, epsilon, compared.single)
    scale, unit = _radius_unit(np.array(radii))
    colors = shades(len(radii)) if compared.single else result_colors(compared)
    handles = []
    for number, replicates in enumerate(tables):
        for which, attack in enumerate(attacks):
            for at, radius in enumerate(radii):
                values = np.stack([_by_step(one, attack, radius) for one in replicates])
                color = colors[at] if compared.single else colors[number]
                x = np.arange(values.shape[1], dtype=np.float64)
                handles.append(curve(ax, x, values, color, markers=False, dashes=DASHES[which % 4]))
    ax.set_xlabel("steps")
    ax.set_xlim(0, ax.dataLim.xmax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if compared.single:
        texts = [f"{radius * scale:g}" for radius in radii]
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        key(ax, handles[: len(radii)], texts, heading=f"ε{unit}", **place)
        _name_attacks(ax, attacks)
    else:
        _name_all(ax, compared, colors, handles, attacks)


def _by_step(outcomes: xr.Dataset, attack: str, radius: float) -> Array:
    values = outcomes["attack_accuracy_by_step"].sel(attack=attack)
    nearest = int(np.abs(outcomes["epsilon"].values - radius).argmin())
    return values.isel(epsilon=nearest).values.astype(np.float64)


def _radii(tables: list[xr.Dataset], epsilon: float | None, single: bool) -> list[float]:
    shared = sorted(shared_labels(tables, "epsilon"))
    if epsilon is None:
        return shared if single else shared[-1:]
    chosen = [one for one in shared if np.isclose(one, epsilon)]
    if not chosen:
        known = some_of([f"{one:.4g}" for one in shared], 10)
        raise OptionError(f"there is no attack of epsilon {epsilon:.4g}; known: {known}")
    return chosen


def _radius_unit(radii: Array) -> tuple[float, str]:
    """The factor and the name of the unit in which radii are shown."""
    steps = 255 * radii
    if np.allclose(steps, np.round(steps), atol=1e-6) and steps.max(initial=0) < 255:
        return 255.0, " (1/255)"
    return 1.0, ""


def _name_all(
    ax: Axes,
    compared: NamedResults[Result],
    colors: list[str],
    handles: Sequence[Handle],
    attacks: list[str],
) -> None:
    """Adds a legend of the results, and one of the attacks."""
    name_results(ax, compared, colors, handles[:: max(1, len(handles) // len(colors))])
    _name_attacks(ax, attacks)


def _name_attacks(ax: Axes, attacks: list[str]) -> None:
    name_dashes(ax, attacks, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def corruption_accuracy(result: Results, *, relative: bool = False, ax: Axes | None = None) -> Axes:
    """Accuracy by type and severity of corruption.

    A single result is drawn as a heat map, with values in percent and the mean over the standard types in
    the last row. Several results are drawn with one row per type: the dot is the mean over severities, and
    the line spans the lowest to the highest severity. Replicates are averaged.

    Args:
        result: A result of `robustness`; `{name: result}` compares several results over the types and
            severities that they have in common.
        relative: Divide by the accuracy on clean images.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result has no corruptions, or several have none in common.

    Example:
        >>> table = xr.Dataset(
        ...     {"accuracy": (("corruption", "severity"), [[0.8, 0.4]])},
        ...     {"corruption": ["fog"], "severity": [1, 5]},
        ... )
        >>> [text.get_text() for text in corruption_accuracy(table).texts]
        ['80', '40']
    """
    compared = named_results(result)
    name = "accuracy_relative" if relative else "accuracy"
    found = compared.each(lambda one: _accuracy(one, name))
    label = "accuracy / clean accuracy" if relative else "accuracy"
    if compared.single:
        return _heat_map(found[0][0], label, ax)
    return _rows(compared, found, label, ax)


def _accuracy(result: Result, name: str) -> xr.DataArray:
    outcomes = table(result, "corruption")
    if name not in outcomes:
        raise DataError(
            f"the result has no {name} under corruptions; ask robustness for corruptions"
        )
    return outcomes[name].transpose("corruption", "severity")


def _heat_map(accuracy: xr.DataArray, label: str, ax: Axes | None) -> Axes:
    from probekit.analysis.robustness.tables import mean_over_types

    values = accuracy.values
    names = [str(one).replace("_", " ") for one in accuracy["corruption"].values]
    if len(names) > 1:
        mean = mean_over_types(accuracy).values
        values = np.vstack([values, np.full(values.shape[1], np.nan), mean])
        names = [*names, "", "mean"]
    with canvas(ax, 1.5 + 0.36 * values.shape[1], 0.8 + 0.175 * len(names)) as ax:
        most = max(1.0, float(np.nanmax(values)))
        ax.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=most)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(
                    column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5,
                    color="black" if value > 0.6 * most else "white",
                )  # fmt: skip
        name_axis(ax.yaxis, names, most=40)
        name_axis(ax.xaxis, accuracy["severity"].values.tolist(), most=10)
        ax.set_xlabel("severity")
        title(ax, f"{label} in %")
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return ax


def _rows(
    compared: NamedResults[Result], found: list[list[xr.DataArray]], label: str, ax: Axes | None
) -> Axes:
    every = [one for replicates in found for one in replicates]
    shared = {axis: shared_labels(every, axis) for axis in ("corruption", "severity")}
    names, levels = shared["corruption"], shared["severity"]
    colors = result_colors(compared)
    room = 0.7 / len(found)
    with canvas(ax, 3.6, 0.9 + max(0.2, 0.075 * len(found)) * len(names)) as ax:
        for number, (replicates, color) in enumerate(zip(found, colors, strict=True)):
            values = np.stack([one.sel(shared).values for one in replicates])
            rows = np.arange(len(names)) + (number - (len(found) - 1) / 2) * room
            ends = values.mean(0)[:, [0, -1]]
            ax.hlines(rows, ends.min(1), ends.max(1), color=color, lw=1, alpha=0.45)
            mean, low, high = resampled_mean(values.mean(2).T)
            ax.plot(mean, rows, "o", ms=3.5, color=color, mew=0)
            ax.hlines(rows, low, high, color=color, lw=2.2)
        for row in range(1, len(names), 2):
            ax.axhspan(row - 0.5, row + 0.5, color="#F4F4F4", lw=0, zorder=0)
        name_axis(ax.yaxis, [str(one).replace("_", " ") for one in names], most=40)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        severities = " to ".join(map(str, dict.fromkeys([levels[0], levels[-1]])))
        ax.set_xlabel(f"{label}, severity {severities}")
        dots = [Line2D([], [], marker="o", mew=0, color=color) for color in colors]
        name_results(ax, compared, colors, dots, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax
