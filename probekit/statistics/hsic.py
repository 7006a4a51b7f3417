"""Sums over samples that determine the unbiased linear HSIC of pairs of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probekit.errors import DataError
from probekit.statistics.base import Statistic, accumulator, add_to

Array = npt.NDArray[np.float64]
_LEAST = 4  # minimum number of samples; the unbiased estimate divides by n (n - 1) (n - 2) (n - 3)


@dataclass
class LinearHSIC(Statistic):
    """The unbiased linear HSIC of every layer of one side with every layer of the other side.

    `first` and `second` are the numbers of units of the layers of each side. All sums are computed in
    float64 about the mean of the first batch. Samples are assigned to `blocks`, which the jackknife leaves
    out one at a time, by their indices only. Memory: 8 * blocks * (units of one side) * (units of the other)
    bytes.

    Source:
        Song et al. 2012 (JMLR 13), the unbiased estimate of HSIC.
    """

    first: tuple[int, ...] = ()
    second: tuple[int, ...] = ()
    blocks: int = 10

    def update(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        """Adds batches (batch, units) of the concatenated layers of both sides, for the same samples."""
        if not len(x):
            return
        if not self.state:
            self.state = self._empty(x.detach(), y.detach())
        home = self.state["count"].device
        x = x.detach().to(home).double() - self.state["origin_x"]
        y = y.detach().to(home).double() - self.state["origin_y"]
        k, m = _squares(x, self.first), _squares(y, self.second)
        # The block of a sample does not depend on the order of the data.
        block = ((index * 2654435761 % 2**32 >> 16) % self.blocks).to(home)
        for number in torch.unique(block).tolist():
            a, b, c, d = (table[block == number] for table in (x, y, k, m))
            sums: dict[str, Any] = {
                "count": len(a), "x": a.sum(0), "y": b.sum(0), "xy": a.T @ b, "k": c.sum(0),
                "l": d.sum(0), "kl": c.T @ d, "xl": a.T @ d, "ky": c.T @ b,
            }  # fmt: skip
            for name, values in sums.items():
                self.state[name][number] += values

    def merge(self, other: LinearHSIC) -> None:
        """Adds the samples of another statistic, whose sums are about a different origin."""
        if not self.state:
            add_to(self.state, other.state)
            return
        if not other.state:
            return
        add_to(self.state, self._about(other.state))

    def estimates(self) -> Array:
        """The estimates (layer, other layer) from all samples."""
        return self._hsic({name: values.sum(0) for name, values in self._blocks().items()})

    def left_out(self) -> Array:
        """The estimates (block, layer, other layer), each leaving out one block."""
        blocks = self._blocks()
        whole = {name: values.sum(0) for name, values in blocks.items()}
        parts = (
            {name: whole[name] - values[number] for name, values in blocks.items()}
            for number in range(self.blocks)
        )
        return np.stack(list(map(self._hsic, parts)))

    def _blocks(self) -> dict[str, Tensor]:
        if not self.state:
            raise DataError("HSIC needs samples, and there are none")
        return {x: one.cpu() for x, one in self.state.items() if not x.startswith("origin")}

    def _empty(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        units, others = sum(self.first), sum(self.second)
        shapes = {
            "count": (), "x": (units,), "y": (others,), "xy": (units, others),
            "k": (len(self.first),), "l": (len(self.second),),
            "kl": (len(self.first), len(self.second)), "xl": (units, len(self.second)),
            "ky": (len(self.first), others),
        }  # fmt: skip
        sums = {name: accumulator((self.blocks, *shape), x) for name, shape in shapes.items()}
        home = sums["count"].device
        origins = {"origin_x": x.to(home).double().mean(0), "origin_y": y.to(home).double().mean(0)}
        return sums | origins

    def _about(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Moves the sums of another statistic to the origins of this one."""
        d = (self.state["origin_x"].cpu() - state["origin_x"].cpu()).double()
        e = (self.state["origin_y"].cpu() - state["origin_y"].cpu()).double()
        s = {name: values.cpu() for name, values in state.items()}
        n, x, y, xy = s["count"][:, None], s["x"], s["y"], s["xy"]
        dd, ee = _squares(d[None], self.first)[0], _squares(e[None], self.second)[0]
        # Scalar products of every layer with its shift, for vectors, matrices and their columns.
        dx, ey = _products(x, d, self.first), _products(y, e, self.second)
        d_xy = _products(xy.movedim(1, -1), d, self.first).movedim(-1, 1)
        xy_e = _products(xy, e, self.second)
        d_xl = _products(s["xl"].movedim(1, -1), d, self.first).movedim(-1, 1)
        ky_e = _products(s["ky"], e, self.second)
        d_xy_e = _products(d_xy, e, self.second)
        squares_y = s["l"] - 2 * ey + n * ee
        squares_x = s["k"] - 2 * dx + n * dd
        wide_d = d[:, None]
        xl = s["xl"] - 2 * xy_e + x[:, :, None] * ee - wide_d * squares_y[:, None, :]
        ky = s["ky"] - 2 * d_xy + dd[:, None] * y[:, None, :] - squares_x[:, :, None] * e
        kl = (
            s["kl"] - 2 * ky_e + s["k"][:, :, None] * ee
            - 2 * d_xl + 4 * d_xy_e - 2 * dx[:, :, None] * ee
            + dd[:, None] * squares_y[:, None, :]
        )  # fmt: skip
        return {
            "count": s["count"], "x": x - n * d, "y": y - n * e, "k": squares_x, "l": squares_y, "kl": kl,
            "xl": xl, "ky": ky,
            "xy": xy - wide_d * y[:, None, :] - x[:, :, None] * e + n[:, :, None] * wide_d * e,
        }  # fmt: skip

    def _hsic(self, s: dict[str, Tensor]) -> Array:
        n = float(s["count"])
        if n < _LEAST:
            raise DataError(f"unbiased HSIC needs at least {_LEAST} samples, and there are {n:.0f}")
        found = np.empty((len(self.first), len(self.second)))
        sizes = (list(self.first), list(self.second))
        columns = zip(torch.split(s["x"], sizes[0]), torch.split(s["xl"], sizes[0]), strict=True)
        blocks = [torch.split(row, sizes[1], 1) for row in torch.split(s["xy"], sizes[0])]
        y = torch.split(s["y"], sizes[1])
        for i, (x, xl) in enumerate(columns):
            ky = torch.split(s["ky"][i], sizes[1])
            for j, xy in enumerate(blocks[i]):
                kl = s["kl"][i, j]
                trace = xy.square().sum() - kl
                first = x.square().sum() - s["k"][i]
                second = y[j].square().sum() - s["l"][j]
                rows = x @ xy @ y[j] - x @ xl[:, j] - ky[j] @ y[j] + kl
                whole = trace + first * second / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
                found[i, j] = float(whole) / (n * (n - 3))
        return found


def _squares(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The squared norm of each layer's part of each row, (rows, layers)."""
    return torch.stack([part.square().sum(1) for part in torch.split(rows, list(sizes), 1)], 1)


def _products(values: Tensor, shift: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scalar products of each layer's part of the last axis with the same part of a shift."""
    parts = torch.split(values * shift, list(sizes), -1)
    return torch.stack([part.sum(-1) for part in parts], -1)
