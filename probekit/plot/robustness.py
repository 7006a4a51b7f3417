"""Plots of accuracy under attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probekit.checks import one_of
from probekit.errors import DataError, OptionError, close_matches, some_of
from probekit.plot.canvas import canvas
from probekit.plot.colors import palette, shades
from probekit.plot.data import Array, NamedResults, Results, named_results, shared_labels, table
from probekit.plot.labels import Handle, key
from probekit.plot.series import DASHES, curve, name_dashes, name_results, result_colors
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
    return outcomes.isel(attack=[at for at, one in enumerate(names) if attack in (None, one)])


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
    shared = shared_labels(tables, "epsilon")
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
