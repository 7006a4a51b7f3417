"""The class selectivity index of the preferred class or any other, for arrays and tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probekit.checks import number, one_of
from probekit.errors import DataError, some_of
from probekit.metrics.metric import Metric

Array: TypeAlias = npt.NDArray[np.float64]
Negative: TypeAlias = Literal["clip", "keep", "shift", "nan"]
Values = TypeVar("Values", Array, Tensor)


@dataclass(frozen=True)
class SelectivityIndex:
    """SI = (mu - mu_rest) / (mu + mu_rest + eps), with options that the papers do not specify.

    mu is the mean of a class, by default of the preferred class, which has the highest mean; mu_rest
    is the mean of the means of all other classes. Class means lie along the last axis and are NaN for
    a class without samples. The methods return arrays for arrays and tensors for tensors. For tensors
    they are differentiable and do not synchronize with the device.

    Source:
        Leavitt & Morcos 2020 (arXiv 2003.01262), after Morcos et al. 2018 (arXiv 1803.06959).
    """

    eps: float = 1e-6
    negative: Negative = "clip"

    def __post_init__(self) -> None:
        one_of("negative", self.negative, get_args(Negative))
        number("eps", self.eps, least=0)

    def of_classes(self, means: Values) -> Values:
        """The index (..., class) that each class would have if it were the preferred one.

        It increases with the mean of the class, so the index of a unit is the highest of these.
        """
        given = torch.as_tensor(means)
        return _like(self._of(given, None), means)

    def at(self, means: Values, place: npt.ArrayLike | Tensor | None = None) -> Values:
        """The index (...,) of the preferred class, or of the classes with the indices `place` (...,).

        A dead unit, whose class means are all zero, has the index 0 and no gradient.
        """
        given = torch.as_tensor(means)
        chosen = _preferred(given) if place is None else torch.as_tensor(place)
        return _like(self._of(given, chosen[..., None])[..., 0], means)

    def _of(self, means: Tensor, place: Tensor | None) -> Tensor:
        known = ~means.isnan()
        values = torch.where(known, means, 0)
        lowest = means.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
        if self.negative == "clip":
            values = values.clamp(min=0)
        elif self.negative == "shift":
            values = torch.where(known, values - lowest.clamp(max=0), 0)
        classes = known.sum(-1, keepdim=True)
        total = values.sum(-1, keepdim=True)
        own = values if place is None else values.gather(-1, place)
        rest = (total - own) / (classes - 1).clamp(min=1)
        size = own + rest + self.eps
        defined = (size != 0) & ~((own == 0) & (rest == 0))
        index = torch.where(defined, (own - rest) / torch.where(defined, size, 1), 0)
        valid = (classes > 1) & (known if place is None else known.gather(-1, place))
        if self.negative == "nan":
            valid = valid & (lowest >= 0)
        return torch.where(valid, index, torch.nan)

    def describe_negative(self, units: int, layers: Sequence[str]) -> str:
        """A message about units with negative class means, and how they were treated."""
        done = {
            "clip": "they count as zero (negative='clip')",
            "keep": "the index is not limited to [0, 1] there (negative='keep')",
            "shift": "each unit's lowest mean was subtracted (negative='shift')",
            "nan": "those units have no index (negative='nan')",
        }[self.negative]
        where = f", in {some_of(layers)}" if len(layers) else ""
        return f"{units} units have class means below zero{where}; {done}"


@dataclass(frozen=True, kw_only=True)
class IndexMetric(Metric):
    """The base class of metrics of the index, with its options."""

    eps: float = 1e-6
    negative: Negative = "clip"

    def __post_init__(self) -> None:
        SelectivityIndex(self.eps, self.negative)

    @property
    def formula(self) -> SelectivityIndex:
        """The index with the options of this metric."""
        return SelectivityIndex(self.eps, self.negative)


def preferred(means: Values) -> Any:
    """The index (...,) of the highest class mean (the first on ties), as an array or a tensor."""
    place = _preferred(torch.as_tensor(means))
    return place if isinstance(means, Tensor) else place.numpy()


def by_unit(function: Callable[..., Array], *tables: Array) -> Array:
    """A function (..., unit) of tables (..., unit, class), computed for blocks of units of bounded size."""
    units = tables[0].shape[-2]
    step = max(1, 2**20 * units // max(1, *(table.size for table in tables)))
    blocks = [slice(start, start + step) for start in range(0, max(units, 1), step)]
    return np.concatenate([function(*(one[..., x, :] for one in tables)) for x in blocks], -1)


def enough_classes(classes: int) -> None:
    if classes < 2:
        raise DataError(
            f"class selectivity needs samples of at least two classes, and the data has {classes}"
        )


def _preferred(means: Tensor) -> Tensor:
    return means.detach().nan_to_num(nan=-torch.inf).argmax(-1)


def _like(found: Tensor, given: Values) -> Values:
    return found if isinstance(given, Tensor) else cast(Values, found.numpy())
