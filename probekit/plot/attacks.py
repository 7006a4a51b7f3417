"""Plots of accuracy under attacks."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from probekit.errors import DataError, OptionError, close_matches, some_of
from probekit.plot.canvas import canvas
from probekit.plot.colours import palette, shades
from probekit.plot.labels import key
from probekit.plot.reading import Array, Compared, Results, compare, table
from probekit.plot.series import colours_of, curve, name_results

Over: TypeAlias = Literal["epsilon", "step"]
_DASHES = ("-", "--", ":", "-.")


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
    if over not in ("epsilon", "step"):
        raise OptionError(f"over is 'epsilon' or 'step', not {over!r}")
    if over == "epsilon" and epsilon is not None:
        raise OptionError(
            "epsilon chooses a radius for over='step'; over='epsilon' shows all of them"
        )
    compared = compare(result)
    name = "attack_accuracy" if over == "epsilon" else "attack_accuracy_by_step"
    found = [
        [_outcomes(one, name, attack) for one in replicates]
        for replicates in compared.results.values()
    ]
    draw = _over_epsilon if over == "epsilon" else _over_steps
    with canvas(ax, 3.2, 2.4) as ax:
        draw(ax, compared, found, epsilon)
        ax.set_ylabel("accuracy under attack")
        ax.set_ylim(0, 1.02)
    return ax


def _outcomes(result: Any, name: str, attack: str | None) -> xr.Dataset:
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


def _over_epsilon(
    ax: Axes, compared: Compared, found: list[list[xr.Dataset]], epsilon: float | None
) -> None:
    attacks = _attacks(found)
    steps, unit = _radius_unit([one["epsilon"].values for each in found for one in each])
    colours = palette(len(attacks)) if compared.single else colours_of(compared)
    handles = []
    for number, replicates in enumerate(found):
        for which, attack in enumerate(attacks):
            colour = colours[which] if compared.single else colours[number]
            curves = [_with_clean(one, attack) for one in replicates]
            radii = np.unique(np.concatenate([list(one) for one in curves]))
            values = np.array([[one.get(radius, np.nan) for radius in radii] for one in curves])
            seen = np.isfinite(values).any(0)
            line = curve(
                ax, radii[seen] * steps, values[:, seen], colour,
                number=which if compared.single else number, dashes=_DASHES[which % 4],
            )  # fmt: skip
            handles.append(line)
    ax.set_xlabel(f"ε{unit}")
    ax.set_xlim(left=0)
    _add_legends(ax, compared, colours, handles, attacks)


def _with_clean(outcomes: xr.Dataset, attack: str) -> dict[float, float]:
    """Accuracy at each radius, with the clean accuracy at 0."""
    values = outcomes["attack_accuracy"].sel(attack=attack)
    curve_of = dict(zip(outcomes["epsilon"].values.tolist(), values.values.tolist(), strict=True))
    clean = {0.0: float(outcomes["clean_accuracy"])} if "clean_accuracy" in outcomes else {}
    return {**clean, **{radius: value for radius, value in curve_of.items() if value == value}}


def _over_steps(
    ax: Axes, compared: Compared, found: list[list[xr.Dataset]], epsilon: float | None
) -> None:
    attacks = [
        name
        for name in _attacks(found)
        if all(
            np.isfinite(one["attack_accuracy_by_step"].sel(attack=name).values[..., 2:]).any()
            for each in found
            for one in each
        )
    ]
    if not attacks:
        raise DataError("no attack of this result takes several steps; use pk.PGD")
    radii = _radii(found, epsilon, compared.single)
    steps, unit = _radius_unit([np.array(radii)])
    colours = shades(len(radii)) if compared.single else colours_of(compared)
    handles = []
    for number, replicates in enumerate(found):
        for which, attack in enumerate(attacks):
            for at, radius in enumerate(radii):
                curves = [_by_step(one, attack, radius) for one in replicates]
                handles.append(
                    curve(
                        ax,
                        np.arange(curves[0].size, dtype=np.float64),
                        np.stack(curves),
                        colours[at] if compared.single else colours[number],
                        markers=False,
                        dashes=_DASHES[which % 4],
                    )
                )
    ax.set_xlabel("steps")
    ax.set_xlim(0, ax.dataLim.xmax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if compared.single:
        texts = [f"{radius * steps:g}" for radius in radii]
        key(
            ax,
            handles[: len(radii)],
            texts,
            heading=f"ε{unit}",
            loc="upper left",
            bbox_to_anchor=(1, 1),
        )
        _name_attacks(ax, attacks)
        return
    _add_legends(ax, compared, colours, handles, attacks)


def _by_step(outcomes: xr.Dataset, attack: str, radius: float) -> Array:
    values = outcomes["attack_accuracy_by_step"].sel(attack=attack)
    near = int(np.abs(outcomes["epsilon"].values - radius).argmin())
    row: Array = values.isel(epsilon=near).values.astype(np.float64)
    return row


def _radii(found: list[list[xr.Dataset]], epsilon: float | None, single: bool) -> list[float]:
    known = [one["epsilon"].values for each in found for one in each]
    shared = [one for one in known[0].tolist() if all(np.isclose(r, one).any() for r in known)]
    if epsilon is None:
        if not shared:
            raise DataError("the results have no epsilon in common")
        return shared if single else shared[-1:]
    chosen = [one for one in shared if np.isclose(one, epsilon)]
    if not chosen:
        there = some_of([f"{one:.4g}" for one in shared], 10)
        raise OptionError(f"there is no attack of epsilon {epsilon:.4g}; there is {there}")
    return chosen


def _attacks(found: list[list[xr.Dataset]]) -> list[str]:
    first = [str(one) for one in found[0][0]["attack"].values]
    shared = [
        one for one in first if all(one in d["attack"].values for each in found for d in each)
    ]
    if not shared:
        raise DataError("the results have no attack in common")
    return shared


def _radius_unit(radii: list[Any]) -> tuple[float, str]:
    """The factor and the name of the unit in which radii are shown."""
    steps = 255 * np.concatenate([np.ravel(one) for one in radii])
    if np.allclose(steps, np.round(steps), atol=1e-6) and steps.max(initial=0) < 255:
        return 255.0, " (1/255)"
    return 1.0, ""


def _add_legends(
    ax: Axes, compared: Compared, colours: list[str], handles: list[Any], attacks: list[str]
) -> None:
    if compared.single:
        key(ax, handles, attacks)
        return
    name_results(ax, compared, colours, handles[:: max(1, len(handles) // len(colours))])
    if len(attacks) > 1:
        _name_attacks(ax, attacks)


def _name_attacks(ax: Axes, attacks: list[str]) -> None:
    """Adds a second legend above the axes, with the line style of each attack."""
    if len(attacks) < 2:
        return
    present = ax.get_legend()
    lines = [Line2D([], [], color="#333333", ls=dash) for dash in _DASHES[: len(attacks)]]
    key(ax, lines, attacks, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    if present is not None:
        ax.add_artist(present)
