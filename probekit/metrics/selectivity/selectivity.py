"""Class selectivity: how much more a unit responds to one class than to all others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.errors import DataError, OptionError, ProbekitWarning, some_of
from probekit.metrics.metric import register
from probekit.statistics.class_means import ClassMeans

__all__ = ["Negative", "Selectivity", "class_selectivity"]

Negative: TypeAlias = Literal["clip", "keep", "shift", "nan"]
_POLICIES = ("clip", "keep", "shift", "nan")


def class_selectivity(
    class_mean: xr.DataArray | xr.Dataset, *, eps: float = 1e-6, negative: Negative = "clip"
) -> xr.DataArray:
    """The class selectivity index of every unit.

    SI = (mu_max - mu_rest) / (mu_max + mu_rest + eps), where mu_max is the highest class mean of a
    unit and mu_rest the mean of the means of all other classes. 0: the same for all classes;
    1: responds to one class alone. A dead unit has 0.

    Args:
        class_mean: Class means (unit, class); or a recording, whose class means are then taken.
        eps: Keeps the quotient finite for units that hardly respond.
        negative: What is done with class means below zero, which take the index out of [0, 1]:
            `"clip"` counts them as zero, `"keep"` applies the formula as it stands, `"shift"`
            subtracts the unit's lowest class mean where that is below zero, `"nan"` gives NaN to
            the units that have any.

    Returns:
        The index (unit), float64.

    Warns:
        ProbekitWarning: Some class means are below zero; the layers are named.

    Raises:
        DataError: Fewer than two classes, or NaN or infinity among the means.
        OptionError: An unknown `negative`, or an `eps` that is not positive or zero.

    Source:
        Leavitt & Morcos 2020 (arXiv 2003.01262), after Morcos et al. 2018 (arXiv 1803.06959).

    Example:
        >>> means = xr.DataArray([[4.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dims=("unit", "class"))
        >>> class_selectivity(means, eps=0).values
        array([1., 0.])
    """
    means = _checked(class_mean, eps, negative)
    below = (means < 0).any("class")
    if bool(below.any()):
        layers = means["layer"].values[below.values].tolist() if "layer" in means.coords else []
        sentence = _about_negative(int(below.sum()), list(dict.fromkeys(layers)), negative)
        warnings.warn(sentence, ProbekitWarning, stacklevel=2)
    ordered = means.transpose("unit", "class")
    found = ordered.isel({"class": 0}, drop=True)
    return found.copy(data=_index(ordered.values, eps, negative)).rename("selectivity")


def _checked(class_mean: xr.DataArray | xr.Dataset, eps: float, negative: Negative) -> xr.DataArray:
    if negative not in _POLICIES:
        raise OptionError(f"negative is one of {', '.join(_POLICIES)}, not {negative!r}")
    if not (isinstance(eps, int | float) and 0 <= eps < np.inf):
        raise OptionError(f"eps must be a number from 0, not {eps!r}")
    means = _class_means(class_mean)
    if means.sizes["class"] < 2:
        raise DataError(
            f"class selectivity compares classes, and the data has {means.sizes['class']}; "
            "give samples of at least two"
        )
    return means


def _about_negative(units: int, layers: Sequence[str], negative: Negative) -> str:
    done = {
        "clip": "they count as zero (negative='clip')",
        "keep": "the index is not bound to [0, 1] there (negative='keep')",
        "shift": "each unit's lowest mean was subtracted (negative='shift')",
        "nan": "those units have no index (negative='nan')",
    }[negative]
    where = f", in {some_of(layers)}" if len(layers) else ""
    return f"{units} units have class means below zero{where}; {done}"


def _index(values: npt.NDArray[np.float64], eps: float, negative: Negative) -> Any:
    """The index (unit,) from class means (unit, class)."""
    lowest = values.min(1, keepdims=True)
    if negative == "clip":
        values = values.clip(min=0)
    elif negative == "shift":
        values = values - lowest.clip(max=0)
    highest = values.max(1)
    rest = (values.sum(1) - highest) / (values.shape[1] - 1)
    total = highest + rest + eps
    index = np.divide(highest - rest, total, out=np.zeros_like(total), where=total != 0)
    if negative == "nan":
        index[lowest[:, 0] < 0] = np.nan
    return index


def _class_means(given: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(given, xr.Dataset):
        if "activation" not in given or "label" not in given.variables:
            raise DataError(
                "class selectivity takes class means (unit, class) or a recording with activation"
                f"(sample, unit) and label(sample), not a dataset of {', '.join(map(str, given))}"
            )
        from probekit.statistics.feeding import feed

        given = feed(given, ClassMeans())
    if "class" not in given.dims:
        raise DataError(f"class means need the dimension 'class', not {given.dims}")
    means: Any = given if given.dtype == np.float64 else given.astype(np.float64)
    if not np.isfinite(means.values).all():
        raise DataError("class means hold NaN or infinity, so that selectivity has no meaning")
    return cast(xr.DataArray, means)


@dataclass(frozen=True)
class Selectivity:
    """The metric `selectivity`: the index of every unit, with what it was computed from.

    Per unit: `selectivity`, `preferred_class` (the label of the highest class mean, -1 for dead
    units), `dead` (no class mean above `dead_below` in size), `negative_class_mean` (some class mean
    is below zero), and `class_mean`. Per layer: `dead_units`, `negative_units`.

    Args:
        eps: As for `class_selectivity`.
        negative: As for `class_selectivity`.
        dead_below: The largest class mean, in size, that a dead unit may have.
    """

    eps: float = 1e-6
    negative: Negative = "clip"
    dead_below: float = 0.0

    @property
    def name(self) -> str:
        """`selectivity`."""
        return "selectivity"

    @property
    def needs(self) -> Sequence[ClassMeans]:
        """Class means."""
        return (ClassMeans(),)

    def evaluate(self, class_mean: xr.DataArray) -> tuple[xr.Dataset, xr.Dataset]:
        """The numbers of one layer."""
        means = _checked(class_mean, self.eps, self.negative).transpose("unit", "class")
        values, labels = means.values, means["class"].values
        index = _index(values, self.eps, self.negative)
        dead = np.abs(values).max(1) <= self.dead_below
        below = (values < 0).any(1)
        units = xr.Dataset(
            {
                "selectivity": ("unit", np.where(dead, 0.0, index)),
                "preferred_class": ("unit", np.where(dead, -1, labels[values.argmax(1)])),
                "dead": ("unit", dead),
                "negative_class_mean": ("unit", below),
                "class_mean": class_mean.variable,
            },
            coords=class_mean.coords,
        )
        layers = xr.Dataset({"dead_units": dead.sum(), "negative_units": below.sum()})
        return units, layers

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Names the layers that have class means below zero."""
        below = layers["layer"].values[layers["negative_units"].values > 0]
        if not len(below):
            return []
        return [_about_negative(int(layers["negative_units"].sum()), below.tolist(), self.negative)]


register(Selectivity())
