"""Sums over samples that determine the unbiased linear HSIC of pairs of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    State: in each block, the `count` of samples and the sums of their rows `x` and `y` and of the
    products `xy` of both. A row holds the units, and then the squared norm of each layer's units.

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
            columns = [sum(sizes) + len(sizes) for sizes in (self.first, self.second)]
            shapes = {"count": (), "x": columns[:1], "y": columns[1:], "xy": columns}
            for name, shape in shapes.items():
                self.state[name] = accumulator((self.blocks, *shape), x)
            for name, units in (("origin_x", x), ("origin_y", y)):
                self.state[name] = units.detach().to(self.state["count"].device).double().mean(0)
        home = self.state["count"].device
        x = _rows(x.detach().to(home).double() - self.state["origin_x"], self.first)
        y = _rows(y.detach().to(home).double() - self.state["origin_y"], self.second)
        # The block of a sample does not depend on the order of the data.
        block = ((index * 2654435761 % 2**32 >> 16) % self.blocks).to(home)
        for number in torch.unique(block).tolist():
            one, other = x[block == number], y[block == number]
            self.state["count"][number] += len(one)
            self.state["x"][number] += one.sum(0)
            self.state["y"][number] += other.sum(0)
            self.state["xy"][number] += one.T @ other

    def merge(self, other: LinearHSIC) -> None:
        """Adds the samples of another statistic, whose sums are about a different origin."""
        if other.state:
            add_to(self.state, self._about(other.state) if self.state else other.state)

    def estimates(self) -> Array:
        """The estimates (1 + block, layer, other layer): from all samples, then without each block."""
        if not self.state:
            raise DataError("HSIC needs samples, and there are none")
        blocks = {x: one.cpu() for x, one in self.state.items() if not x.startswith("origin")}
        whole = {name: values.sum(0) for name, values in blocks.items()}
        parts = [
            {name: whole[name] - values[number] for name, values in blocks.items()}
            for number in range(self.blocks)
        ]
        return np.stack([self._hsic(sums) for sums in (whole, *parts)])

    def _about(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Moves the sums of another statistic to the origins of this one.

        This maps a row linearly (`_turned`) and adds a constant row: minus the step, and its squares.
        """
        state = {name: values.cpu() for name, values in state.items()}
        step_x, step_y = (self.state[name].cpu() - state[name] for name in ("origin_x", "origin_y"))
        add_x, add_y = _rows(-step_x, self.first), _rows(-step_y, self.second)
        count = state["count"][:, None]
        x, y = _turned(state["x"], step_x, self.first), _turned(state["y"], step_y, self.second)
        xy = _turned(_turned(state["xy"], step_y, self.second).mT, step_x, self.first).mT
        y = y + count * add_y
        xy = xy + x[:, :, None] * add_y + add_x[:, None] * y[:, None]
        return {"count": state["count"], "x": x + count * add_x, "y": y, "xy": xy}

    def _hsic(self, sums: dict[str, Tensor]) -> Array:
        n = float(sums["count"])
        if n < _LEAST:
            raise DataError(f"unbiased HSIC needs at least {_LEAST} samples, and there are {n:.0f}")
        found = np.empty((len(self.first), len(self.second)))
        *xs, x_squares = torch.split(sums["x"], [*self.first, len(self.first)])
        *ys, y_squares = torch.split(sums["y"], [*self.second, len(self.second)])
        *tables, of_squares = torch.split(sums["xy"], [*self.first, len(self.first)])
        for i, (x, table) in enumerate(zip(xs, tables, strict=True)):
            *products, x_by_squares = torch.split(table, [*self.second, len(self.second)], 1)
            *squares_by_y, squares = torch.split(of_squares[i], [*self.second, len(self.second)])
            for j, (y, xy) in enumerate(zip(ys, products, strict=True)):
                trace = xy.square().sum() - squares[j]
                first = x.square().sum() - x_squares[i]
                second = y.square().sum() - y_squares[j]
                rows = x @ xy @ y - x @ x_by_squares[:, j] - squares_by_y[j] @ y + squares[j]
                whole = trace + first * second / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
                found[i, j] = float(whole) / (n * (n - 3))
        return found


def _rows(units: Tensor, sizes: Sequence[int]) -> Tensor:
    """The units (..., units), followed by the squared norm of each layer's units."""
    return torch.cat([units, _by_layer(units.square(), sizes)], -1)


def _turned(rows: Tensor, step: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows (..., units and squares), minus twice the scalar product with a step (units,) in the squares."""
    units, squares = torch.split(rows, [sum(sizes), len(sizes)], -1)
    return torch.cat([units, squares - 2 * _by_layer(units * step, sizes)], -1)


def _by_layer(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum over the units of each layer, (..., layers)."""
    return torch.stack([part.sum(-1) for part in torch.split(values, list(sizes), -1)], -1)
