"""Sources of the tables that update statistics: one (rows, columns) tensor per layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.pooling import pool
from probekit.capture.recorder import Recorder

Spatial: TypeAlias = Literal["mean", "positions", "flatten"]
Tap: TypeAlias = Callable[[Tensor, Tensor], dict[str, Tensor]]


@runtime_checkable
class Source(Protocol):
    """Defines the table of each layer that updates a statistic.

    Attributes:
        own_pass: Whether its tap runs the model itself instead of observing the shared forward pass.
    """

    own_pass: bool

    def open(
        self, model: Any, layers: Sequence[Layer], *, samples: Tensor | None = None, **reading: Any
    ) -> AbstractContextManager[Tap]:
        """Yields a function from a batch of images and their indices to {layer: (rows, columns)}.

        `samples` are the indices of all samples, if they are known in advance.

        The function is called once per batch, after its forward pass. A sample has one row, or several
        contiguous rows.
        """
        ...


@dataclass(frozen=True)
class Activations:
    """The activations of the layers in the forward pass.

    Args:
        spatial: `"mean"`: (batch, units), pooled over positions; `"positions"`: each position is a
            row; `"flatten"`: each element is a column.
    """

    spatial: Spatial = "mean"
    own_pass = False

    @contextmanager
    def open(
        self, model: Any, layers: Sequence[Layer], *, samples: Tensor | None = None, **reading: Any
    ) -> Iterator[Tap]:
        """Observes the forward pass of the model."""
        with Recorder(model, list(layers), spatial=_TABLES[self.spatial], **reading) as recorder:
            yield lambda images, index: recorder.activations


def _positions(maps: Tensor) -> Tensor:
    """(batch, units, *positions) as (batch * positions, units)."""
    return maps.flatten(2).movedim(1, 2).flatten(0, 1).clone() if maps.ndim > 2 else maps.clone()


def _flatten(maps: Tensor) -> Tensor:
    """(batch, units, *positions) as (batch, units * positions)."""
    return maps.flatten(1).clone()


_TABLES = {"mean": pool, "positions": _positions, "flatten": _flatten}
