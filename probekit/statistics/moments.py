"""Moments of rows up to the fourth order about any point, updated and merged without cancellation.

For rows x and a fixed point s near them, let z = x - s. Five sums determine the covariance and its
finite-sample correction, and can be moved to another point s in closed form: `count` (), the sum of
1; `first` (columns,), of z; `second` (columns, columns), of z z'; `third` (columns,), of (z'z) z;
`fourth` (), of (z'z)^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from probekit.statistics.base import accumulator

Moments: TypeAlias = Mapping[str, Tensor]

_BLOCK_BYTES = 2**22  # a larger block no longer fits into the cache of a CPU
_BLOCK_ROWS = 2**11  # more rows raise the error of their sum
_BLOCK_ELEMENTS = 2**21  # on a GPU, which starts many kernels for each block
_SAFE = (1e-20, 1e30)
_HEAVIEST = 64
_WIDE, _NARROW = 128, 32  # columns
_MANY = 2**13  # rows of one update, as with positions


def begin(rows: Tensor) -> dict[str, Tensor]:
    """Empty moments about a point near the first rows (rows, columns)."""
    columns = rows.shape[1]
    first = accumulator((columns,), rows)
    return {
        "count": accumulator((1,), rows)[0].to(torch.int64),
        "first": first,
        "second": accumulator((columns, columns), rows),
        "third": accumulator((columns,), rows),
        "fourth": accumulator((1,), rows)[0],
        "shift": _middle(next(_blocks(rows, first.device))).double(),
    }


def add(moments: Moments, rows: Tensor) -> None:
    """Adds rows (rows, columns) of any dtype to moments, in place.

    Each block of rows is summed about a point near its mean; the sums are then moved and added in
    float64. Sums within a block are also in float64, except for tables in float32 or lower precision
    with at least 128 columns, or on a CPU 32 if there are 8,192 rows. These are summed in float32,
    with an error of less than 2e-6 times the product of two standard deviations, unless the range of
    float32 or an outlier increases it.
    """
    for block in _blocks(rows, moments["shift"].device):
        for name, values in about(_of_block(block), moments["shift"]).items():
            if name != "shift":
                moments[name].add_(values)


def mean(moments: Moments) -> Tensor:
    return moments["shift"] + moments["first"] / moments["count"]


def about(moments: Moments, point: Tensor) -> dict[str, Tensor]:
    """The same moments about another point (columns,).

    With d = s - point, each sum of powers of (z + d) is expanded.
    """
    step = moments["shift"] - point
    count, first, second = moments["count"], moments["first"], moments["second"]
    third, fourth = moments["third"], moments["fourth"]
    trace, length, along = second.trace(), step @ step, step @ first
    pushed = second @ step
    side = first + count / 2 * step
    return {
        "count": count.clone(),
        "first": first + count * step,
        "second": second.addmm(torch.stack((side, step), 1), torch.stack((step, side))),
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
    """The moments of the rows of both arguments about their common mean."""
    other = {name: values.to(one[name].device) for name, values in other.items()}
    between = other["shift"] - one["shift"]
    total = one["count"] + other["count"]
    step = (one["first"] + other["first"] + other["count"] * between) / total
    point = one["shift"] + step
    left, right = about(one, point), about(other, point)
    joined = {name: left[name] + right[name] for name in left}
    joined["shift"] = point
    return joined


def _blocks(rows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Blocks of bounded size, in the precision in which `add` sums them."""
    exact = rows.dtype in (torch.float32, torch.float16, torch.bfloat16)
    precise = torch.get_float32_matmul_precision() == "highest"
    columns, on_cpu = rows.shape[1], device.type == "cpu"
    large = columns >= (_NARROW if on_cpu and len(rows) >= _MANY else _WIDE)
    dtype = torch.float32 if large and exact and precise else torch.float64
    size = _BLOCK_ELEMENTS // columns
    if on_cpu:
        size = min(_BLOCK_BYTES // (dtype.itemsize * columns), _BLOCK_ROWS)
    for block in torch.split(rows.to(device), max(256, size)):
        yield block.to(dtype)


def _middle(block: Tensor) -> Tensor:
    """A row near the mean of a block; exact for constant columns."""
    return block[0] + (block - block[0]).mean(0)


def _of_block(block: Tensor) -> Moments:
    """The moments of one block about a row near its mean, summed in its precision."""
    middle = _middle(block)
    centered = block - middle
    squares = torch.linalg.vecdot(centered, centered)
    total, fourth = squares.sum(dtype=torch.float64), squares.double().square().sum()
    even = _SAFE[0] < total < _SAFE[1] and len(block) * fourth < _HEAVIEST * total**2
    if block.dtype == torch.float32 and not even:
        return _of_block(block.double())
    sums = {
        "first": centered.sum(0),
        "second": centered.T @ centered,
        "third": squares @ centered,
        "fourth": fourth,
        "shift": middle,
    }
    count = torch.tensor(len(block), device=block.device)
    return {"count": count, **{name: values.double() for name, values in sums.items()}}
