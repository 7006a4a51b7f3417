"""Moments of rows up to the fourth, about any point: added, moved and joined without cancellation.

For rows x and a fixed point s near them, with z = x - s, five sums say all that the covariance and
its finite-sample correction need, and moving s to another point is exact in closed form: `count`
(), of 1; `first` (columns,), of z; `second` (columns, columns), of z z'; `third` (columns,), of
(z'z) z; `fourth` (), of (z'z)^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from probekit.statistics.base import accumulator

__all__ = ["Moments", "about", "add", "begin", "join", "mean"]

Moments: TypeAlias = Mapping[str, Tensor]

BLOCK_ELEMENTS = 2**22


def begin(rows: Tensor) -> dict[str, Tensor]:
    """Empty moments about the mean of some first rows (rows, columns).

    The mean is taken of differences from the first row: columns that are constant then have a
    variance of zero exactly.
    """
    columns = rows.shape[1]
    moments = {
        "count": accumulator((1,), rows)[0].to(torch.int64),
        "first": accumulator((columns,), rows),
        "second": accumulator((columns, columns), rows),
        "third": accumulator((columns,), rows),
        "fourth": accumulator((1,), rows)[0],
    }
    values = rows[: max(1, BLOCK_ELEMENTS // columns)].to(moments["first"].device).double()
    moments["shift"] = values[0] + (values - values[0]).mean(0)
    return moments


def add(moments: Moments, rows: Tensor) -> None:
    """Adds rows (rows, columns) of any dtype to moments, in place and in blocks of bounded size."""
    shift = moments["shift"]
    for block in torch.split(rows, max(256, BLOCK_ELEMENTS // rows.shape[1])):
        centred = block.to(shift.device).to(torch.float64) - shift
        squares = centred.square().sum(1)
        moments["count"].add_(len(block))
        moments["first"].add_(centred.sum(0))
        moments["second"].addmm_(centred.T, centred)
        moments["third"].add_(squares @ centred)
        moments["fourth"].add_(squares @ squares)


def mean(moments: Moments) -> Tensor:
    """The mean row (columns,)."""
    return moments["shift"] + moments["first"] / moments["count"]


def about(moments: Moments, point: Tensor) -> dict[str, Tensor]:
    """The same moments about another point (columns,).

    With d = s - point, each sum of powers of (z + d) is multiplied out.
    """
    step = moments["shift"] - point
    count, first, second = moments["count"], moments["first"], moments["second"]
    third, fourth = moments["third"], moments["fourth"]
    trace, length, along = second.trace(), step @ step, step @ first
    pushed = second @ step
    cross = torch.outer(first, step)
    return {
        "count": count.clone(),
        "first": first + count * step,
        "second": second + cross + cross.T + count * torch.outer(step, step),
        "third": (
            third
            + 2 * pushed
            + length * first
            + (trace + 2 * along + count * length) * step
        ),
        "fourth": (
            fourth
            + 4 * (step @ third)
            + 4 * (step @ pushed)
            + 2 * length * trace
            + 4 * length * along
            + count * length**2
        ),
        "shift": point.clone(),
    }  # fmt: skip


def join(one: Moments, other: Moments) -> dict[str, Tensor]:
    """The moments of the rows of both, about their common mean."""
    other = {name: values.to(one[name].device) for name, values in other.items()}
    between = other["shift"] - one["shift"]
    total = one["count"] + other["count"]
    step = (one["first"] + other["first"] + other["count"] * between) / total
    point = one["shift"] + step
    left, right = about(one, point), about(other, point)
    joined = {name: left[name] + right[name] for name in left}
    joined["shift"] = point
    return joined
