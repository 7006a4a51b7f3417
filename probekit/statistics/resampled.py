"""Class means under many sample weightings at once, for the bootstrap and random splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.checks import one_of, positive_int
from probekit.errors import DataError
from probekit.runtime import randomness as streams
from probekit.statistics.base import ClassSums, check_batch, check_memory, format_bytes

Weights = Literal["poisson", "halves"]


@dataclass
class CachedDraw:
    """Caches the random numbers of the last batch, so the layers of one pass share them."""

    index: Tensor | None = None
    drawn: Tensor | None = None

    def of(self, index: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The numbers for these samples, drawn again if they are not those of the last batch."""
        same = (
            self.index is not None
            and self.index.device == index.device
            and torch.equal(self.index, index)
        )
        if not same or self.drawn is None:
            self.index, self.drawn = index.clone(), make(index)
        return self.drawn


@dataclass
class ResampledClassMeans(ClassSums):
    """Class means under many sets of sample weights, computed from weighted sums in float64.

    The weights of a sample depend only on (seed, replicate, the sample's index), so order, batch size
    and the number of processes do not affect the result. With Poisson weights of mean 1, each
    replicate is a bootstrap sample (the Poisson bootstrap: Chamandy et al. 2012). With halves, each
    split assigns each sample to one half or the other with equal probability.

    State: `sum` (classes, rows, units), `weight` (classes, rows) and `count` (classes,) for the classes
    in `label` (classes,), with one row per replicate, or two per split. In all layers of a pass, they take
    at most `memory` bytes, whatever the number of samples.
    """

    replicates: int = 200
    weights: Weights = "poisson"
    seed: int = 0
    memory: int = field(default=2**31, compare=False)
    draw: CachedDraw = field(default_factory=CachedDraw, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        positive_int("replicates", self.replicates)
        one_of("weights", self.weights, ("poisson", "halves"))

    @property
    def rows(self) -> int:
        """The number of sets of class means."""
        return self.replicates * (2 if self.weights == "halves" else 1)

    def expect(
        self, labels: Tensor | None, index: Tensor | None = None, layers: Sequence[Layer] = ()
    ) -> None:
        """Checks before a pass that the states of all layers fit into memory, if labels are known."""
        if labels is not None:
            self._check(len(torch.unique(labels)), sum(layer.units for layer in layers))

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Updates the means with a batch (batch, units), its labels and its indices (batch,)."""
        index = checked_index(activations, labels, index)
        if not len(labels):
            return
        places = self._rows(labels, activations)
        total, weight, count = (self.state[name] for name in ("sum", "weight", "count"))
        drawn = self.draw.of(index.to(total.device), self._weigh)
        values = activations.detach().to(device=total.device).to(torch.float64)
        order = places.argsort(stable=True)
        sizes = torch.bincount(places)
        present = sizes.nonzero()[:, 0]
        parts = torch.split(order, sizes[present].tolist())
        for place, rows in zip(present.tolist(), parts, strict=True):
            chosen = drawn[:, rows]
            total[place].addmm_(chosen, values[rows])
            weight[place] += chosen.sum(1)
            count[place] += len(rows)

    def to_xarray(self) -> xr.Dataset:
        """`class_mean` (replicate, [half,] unit, class) and `weight` (replicate, [half,] class).

        A class mean is NaN if all its samples have weight 0.
        """
        state = self._on_cpu()
        weight, classes = state["weight"], len(state["label"])
        means = state["sum"] / weight[:, :, None]
        halves = ("half",) if self.weights == "halves" else ()
        shape = (self.replicates, 2) if halves else (self.replicates,)
        return xr.Dataset(
            {
                "class_mean": (
                    ("replicate", *halves, "unit", "class"),
                    means.movedim(0, -1).reshape(*shape, -1, classes).numpy(),
                ),
                "weight": (
                    ("replicate", *halves, "class"),
                    weight.T.reshape(*shape, classes).numpy(),
                ),
            },
            coords={"class": state["label"].numpy(), "count": ("class", state["count"].numpy())},
        )

    def _weigh(self, index: Tensor) -> Tensor:
        drawn = streams.words(f"{self.weights} {self.seed}", self.replicates, index)
        if self.weights == "poisson":
            return streams.poisson(drawn).double()
        first = streams.coins(drawn)
        return torch.stack([first, ~first], 1).flatten(0, 1).double()

    def _check(self, classes: int, columns: int) -> None:
        tables = self.rows // self.replicates
        check_replicates("replicates", self.replicates, tables * classes, columns, self.memory)

    def _shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        return {"sum": (self.rows, columns), "weight": (self.rows,)}


def checked_index(
    activations: Tensor, labels: Tensor, index: Tensor | None, *, uses_labels: bool = True
) -> Tensor:
    """Returns the samples' indices, required for resampling; raises `DataError` for an invalid batch."""
    if index is None:
        raise DataError("resampling needs the samples' indices, and the batch has none; pass index")
    check_batch(activations, labels, uses_labels=uses_labels)
    if index.shape != labels.shape:
        raise DataError(
            f"{tuple(activations.shape)} activations need one index per row, not "
            f"{tuple(index.shape)}"
        )
    return index


def check_replicates(option: str, replicates: int, classes: int, units: int, memory: int) -> None:
    """Checks that the sums of a number of replicates fit into memory.

    `option` sets their number. Each has one row of units per class, or two for halves.
    """
    each = max(8 * classes * units, 1)
    most = memory // each
    check_memory(
        replicates * each,
        memory,
        f"{option}={replicates} for {units} units and {classes} classes",
        (f"lower {option} to {most}" if most else f"one alone needs {format_bytes(each)}")
        + ", record fewer layers",
    )
