"""The streamed covariance of a layer's units, with the moments for its finite-sample correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.checks import positive_int
from probekit.errors import DataError
from probekit.statistics import moments
from probekit.statistics.base import (
    SpatialStatistic,
    accumulator,
    append,
    check_memory,
    columns_of,
    gather,
    nbytes,
)

_REMEDY = {
    "mean": "choose fewer or narrower layers",
    "positions": "choose fewer or narrower layers",
    "flatten": "choose fewer layers, fewer samples (limit), or spatial='mean' or 'positions'",
}
_GRAM_COLUMNS = 2**22


@dataclass
class Covariance(SpatialStatistic):
    """Mean and covariance over rows, in float64 and mergeable in any order.

    With `spatial="flatten"`, the rows themselves are stored as long as there are fewer rows than
    dimensions. The Gram matrix of the rows then replaces the covariance; both have the same nonzero
    eigenvalues, trace and norm. A layer of D dimensions stores 8 D^2 bytes, or n D b bytes for n < D
    rows of itemsize b. The largest layer temporarily takes another 48 D^2 or 48 n^2 bytes.

    State: the sums of `probekit.statistics.moments`, or the rows.

    Args:
        spatial: `"mean"`: units pooled over positions; `"positions"`: units with every position as
            a row; `"flatten"`: the elements of the map.
        centered: Compute moments about the mean (divided by n - 1) rather than about zero (divided by n).
        memory: Maximum number of bytes for all layers of a pass together; checked before the pass from
            the number of samples, and during the pass.

    Example:
        >>> covariance = Covariance()
        >>> covariance.update(torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([0, 1]))
        >>> covariance.update(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
        >>> covariance.to_xarray()["covariance"].values
        array([[ 4., -1.],
               [-1.,  7.]])
    """

    uses_labels: ClassVar[bool] = False

    centered: bool = True
    memory: int = 4 * 2**30

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("memory", self.memory)

    def check(self, layers: Sequence[Layer], samples: int | None) -> None:
        """Checks before a pass that the covariances of these layers fit into memory."""
        sizes = {layer.name: columns_of(layer, self.spatial) for layer in layers}
        largest = max(sizes, key=lambda name: sizes[name])
        rows = self._rows(samples)
        stored = sum(_stored_bytes(sizes[layer.name], rows, layer.itemsize) for layer in layers)
        of = "an unknown number of samples" if samples is None else f"{samples} samples"
        check_memory(
            stored + _working_bytes(sizes[largest], rows),
            self.memory,
            f"the covariance (spatial={self.spatial!r}) of {len(layers)} layers over {of}, "
            f"with {sizes[largest]} dimensions in {largest!r},",
            _REMEDY[self.spatial],
        )

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Updates the moments with rows (rows, dimensions); `index` (rows,) orders stored rows."""
        if activations.ndim != 2:
            raise DataError(f"covariance needs (rows, columns), not {tuple(activations.shape)}")
        if not len(activations):
            return
        rows = activations.detach().to(accumulator((1,), activations).device)
        known = self._columns()
        if known not in (None, rows.shape[1]):
            raise DataError(f"a covariance of {known} columns cannot add rows of {rows.shape[1]}")
        if self.spatial == "flatten" and "second" not in self.state:
            start = self._count()
            index = torch.arange(start, start + len(rows)) if index is None else index
            append(self.state, rows=rows, index=index.to(rows.device))
            self._settle()
        else:
            if not self.state:
                self._check_memory(len(rows), rows.shape[1])
                self.state = moments.begin(rows)
            moments.add(self.state, rows)

    def merge(self, other: Covariance) -> None:
        for rows, index in zip(*(gather(other.state, x) for x in ("rows", "index")), strict=True):
            self.update(rows, index, index)
        if "second" not in other.state:
            return
        mine = gather(self.state, "rows")
        if mine or not self.state:
            self.state = {name: values.clone() for name, values in other.state.items()}
            for rows in mine:
                moments.add(self.state, rows)
        else:
            self.state = moments.join(self.state, other.state)

    def to_xarray(self) -> xr.Dataset:
        """The covariance or the Gram matrix of the rows, with their mean and count.

        Returns:
            `covariance` (unit, other_unit), or `gram` (row, other_row) if the rows were stored: the
            inner products of the rows divided by n - 1 (by n if not centered); `mean` and `variance`
            (unit), where the variance is the diagonal of the covariance; `count`, the number of rows;
            `n_dimensions`; `centered`; and `fourth_moment`, the mean fourth power of the rows' distance
            from the mean (divided by n - 1), or from zero (divided by n) if not centered.

        Raises:
            DataError: There are no rows, or only one if the covariance is centered.
        """
        count = self._count()
        if count < 1 + self.centered:
            raise DataError(
                f"a covariance needs at least {1 + self.centered} rows, and there are {count}"
            )
        degrees = count - self.centered
        if "second" in self.state:
            name, dims = "covariance", ("unit", "other_unit")
            center = moments.mean(self.state)
            point = center if self.centered else torch.zeros_like(center)
            found = moments.about(self.state, point)
            matrix, fourth = found["second"], found["fourth"]
            matrix = matrix.add_(matrix.T.clone()).div_(2 * degrees)
            variance = matrix.diagonal().clone()
        else:
            name, dims = "gram", ("row", "other_row")
            matrix, center, squares = self._gram(count)
            fourth = matrix.diagonal().square().sum()
            matrix, variance = matrix.div_(degrees), squares.div_(degrees)
        return xr.Dataset(
            {
                name: (dims, matrix.cpu().numpy()),
                "mean": ("unit", center.cpu().numpy()),
                "variance": ("unit", variance.cpu().numpy()),
                "count": count,
                "n_dimensions": len(center),
                "centered": self.centered,
                "fourth_moment": float(fourth / degrees),
            }
        )

    def _gram(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The inner products of the stored rows, their mean, and the sums of squares of the columns."""
        parts = gather(self.state, "rows")
        columns = parts[0].shape[1]
        order = torch.cat(gather(self.state, "index")).argsort(stable=True)
        gram = torch.zeros(count, count, dtype=torch.float64, device=parts[0].device)
        center = torch.zeros(columns, dtype=torch.float64, device=parts[0].device)
        squares = torch.zeros_like(center)
        for start in range(0, columns, width := max(1, _GRAM_COLUMNS // count)):
            stop = start + width
            block = torch.cat([part[:, start:stop].to(torch.float64) for part in parts])[order]
            origin = block[0].clone()
            middle = (block - origin).mean(0) + origin
            center[start:stop] = middle
            if self.centered:
                block -= middle
            squares[start:stop] = block.square().sum(0)
            gram.addmm_(block, block.T)
        return gram, center, squares

    def _settle(self) -> None:
        """Converts stored rows to moments once there are as many rows as dimensions."""
        count, columns = self._count(), self._columns() or 0
        self._check_memory(count, columns)
        if count >= columns:
            parts = gather(self.state, "rows")
            self.state = moments.begin(parts[0])
            for rows in parts:
                moments.add(self.state, rows)

    def _check_memory(self, count: int, columns: int) -> None:
        rows = self._rows(count)
        stored = max(nbytes(self.state), _stored_bytes(columns, rows, 1))
        check_memory(
            stored + _working_bytes(columns, rows),
            self.memory,
            f"the covariance (spatial={self.spatial!r}) of {columns} dimensions over {count} rows",
            _REMEDY[self.spatial],
        )

    def _rows(self, count: int | None) -> int | None:
        """The number of rows if it bounds the memory; otherwise None."""
        return count if self.spatial == "flatten" else None

    def _count(self) -> int:
        if "count" in self.state:
            return int(self.state["count"])
        return sum(map(len, gather(self.state, "rows")))

    def _columns(self) -> int | None:
        if "first" in self.state:
            return len(self.state["first"])
        return next((part.shape[1] for part in gather(self.state, "rows")), None)


def _stored_bytes(columns: int, rows: int | None, itemsize: int) -> int:
    if rows is not None and rows < columns:
        return rows * columns * itemsize
    return 8 * columns**2


def _working_bytes(columns: int, rows: int | None) -> int:
    return 48 * (columns if rows is None else min(rows, columns)) ** 2
