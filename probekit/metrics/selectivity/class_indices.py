"""The selectivity index on plain arrays: for each class as if it were preferred, and for the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from probekit.errors import DataError, OptionError
from probekit.metrics.selectivity.selectivity import Negative

__all__ = ["Array", "Formula", "enough_classes", "preferred"]

Array: TypeAlias = npt.NDArray[np.float64]
Places: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Formula:
    """The formula of the index, with what the papers leave open.

    Args:
        eps: As for `class_selectivity`.
        negative: As for `class_selectivity`.

    Raises:
        OptionError: An unknown `negative`, or an `eps` that is not positive or zero.
    """

    eps: float = 1e-6
    negative: Negative = "clip"

    def __post_init__(self) -> None:
        if self.negative not in ("clip", "keep", "shift", "nan"):
            raise OptionError(f"negative is one of clip, keep, shift, nan, not {self.negative!r}")
        if not (isinstance(self.eps, int | float) and 0 <= self.eps < np.inf):
            raise OptionError(f"eps must be a number from 0, not {self.eps!r}")

    def of_classes(self, means: Array) -> Array:
        """The index that each class would give if it were the preferred one.

        (mu_c - rest_c) / (mu_c + rest_c + eps), where rest_c is the mean of the means of all other
        classes. It grows with mu_c, so that the index of a unit is the highest of these.

        Args:
            means: Class means (..., class); NaN where a class has no sample.

        Returns:
            (..., class), NaN where the mean is.

        >>> Formula(eps=0).of_classes(np.array([3.0, 1.0, 1.0])).round(2)
        array([ 0.5 , -0.33, -0.33])
        """
        lowest = np.where(np.isnan(means), np.inf, means).min(-1, keepdims=True)
        if self.negative == "clip":
            means = np.maximum(means, 0.0)
        elif self.negative == "shift":
            means = means - np.minimum(lowest, 0.0)
        known = ~np.isnan(means)
        classes = known.sum(-1, keepdims=True)
        total = np.where(known, means, 0.0).sum(-1, keepdims=True)
        rest = (total - means) / np.maximum(classes - 1, 1)
        size = means + rest + self.eps
        index: Array = np.where(size == 0, 0.0, (means - rest) / np.where(size == 0, 1.0, size))
        without = (classes < 2) | ((lowest < 0) & (self.negative == "nan"))
        return np.where(without | ~known, np.nan, index)

    def at(self, means: Array, place: Places | None = None) -> Array:
        """The index (...,) of given classes, or of the preferred one.

        >>> Formula(eps=0).at(np.array([[3.0, 1.0, 1.0]]))
        array([0.5])
        """
        place = preferred(means) if place is None else place
        found: Array = np.take_along_axis(self.of_classes(means), place[..., None], -1)[..., 0]
        return found


def preferred(means: Array) -> Places:
    """The place (...,) of the highest class mean."""
    found: Any = np.where(np.isnan(means), -np.inf, means).argmax(-1)
    return np.asarray(found, dtype=np.int64)


def enough_classes(classes: int) -> None:
    """Refuses data of fewer than two classes.

    Raises:
        DataError: As it says.
    """
    if classes < 2:
        raise DataError(
            f"class selectivity compares classes, and the data has {classes}; give samples of at "
            "least two"
        )
