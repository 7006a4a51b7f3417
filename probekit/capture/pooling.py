"""The mean of a map over its positions, with a gradient that needs one pass over the map."""

from __future__ import annotations

import inspect
from math import prod
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_NARROW = 64


def pool(maps: Tensor) -> Tensor:
    """The mean over positions, computed in the memory layout of the maps.

    Maps (batch, units, *positions) give a new tensor (batch, units); half precision is averaged, and
    returned, in float32. In autograd, the gradient is an expanded view instead of a full map if the
    engine can add it in place to the gradient of the maps.
    """
    if maps.ndim == 2:
        return maps.to(precise(maps.dtype), copy=True)
    if torch.compiler.is_compiling() or not (maps.requires_grad and torch.is_grad_enabled()):
        return _mean(maps)
    pooled: Tensor = _Pool.apply(maps)
    return pooled


def precise(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which maps are averaged: float32 for half precision, otherwise their own."""
    return torch.float32 if dtype in _HALF else dtype


def _units_last(maps: Tensor) -> bool:
    """Whether the units of one position are contiguous in memory, as in channels-last."""
    return not maps.is_contiguous() and maps.movedim(1, -1).is_contiguous()


def _mean(maps: Tensor) -> Tensor:
    dtype = precise(maps.dtype)
    if torch.compiler.is_compiling() or not _units_last(maps):
        return maps.flatten(2).mean(2, dtype=dtype)
    rows = maps.movedim(1, -1).flatten(1, -2)
    if maps.dtype is torch.bfloat16 and maps.device.type == "cpu":
        return _mean_of_rows(rows)
    return rows.mean(1, dtype=dtype)


def _mean_of_rows(rows: Tensor) -> Tensor:
    """The mean of bfloat16 numbers over axis 1 to 16 bits, without a copy in float32.

    The sum is accumulated in float32 and rounded once, so a matrix product that starts at minus the
    rounded sum returns the rounding error.
    """
    high = rows.sum(1, keepdim=True)
    low = torch.baddbmm(high, rows.new_ones(len(rows), 1, rows.shape[1]), rows, beta=-1)
    return high.float().add_(low).div_(rows.shape[1])[:, 0]


class _Pool(torch.autograd.Function):
    """`_mean`, with its gradient spread over the positions as a view rather than a map."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor) -> Tensor:
        return _mean(maps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        (maps,) = inputs
        ctx.shape, ctx.dtype = tuple(maps.shape), maps.dtype
        narrow = maps.device.type == "cpu" and maps.shape[1] < _NARROW
        ctx.by_rows = narrow and maps.ndim > 3 and _units_last(maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        positions = ctx.shape[2:]
        share: Tensor = (gradient / prod(positions)).to(ctx.dtype)
        if ctx.by_rows:
            return _rows(share, positions)
        return share.reshape(*share.shape, *(1 for _ in positions)).expand(ctx.shape)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _mean(tangent)


# `apply` reads the signature in every call; computing it would take as long as the rest of the call.
_Pool.forward.__signature__ = inspect.signature(_Pool.forward)  # type: ignore[attr-defined]  # functions take attributes


def _rows(share: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Expands (batch, units) to all positions, units last, with one row of positions materialized.

    On a CPU, adding a few units position by position takes many times as long as adding whole rows.
    """
    row = torch.cat([share] * positions[-1], 1)
    rows = row.view(len(share), *(1 for _ in positions[1:]), positions[-1], share.shape[1])
    return rows.expand(-1, *positions, -1).movedim(-1, 1)
