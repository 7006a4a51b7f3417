"""Class means of many reweightings of the samples at once: the bootstrap and random halves."""

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
from probekit.statistics.base import Statistic, accumulator
from probekit.statistics.by_class import rows_of
from probekit.statistics.rows import in_words, refuse_beyond

__all__ = ["Draw", "ResampledClassMeans", "Weights"]

Weights = Literal["poisson", "halves"]


@dataclass
class Draw:
    """What was drawn for the last batch, so that the layers of one pass share the draw."""

    index: Tensor | None = None
    drawn: Tensor | None = None

    def of(self, index: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The draw for these samples, made when they are not those of the last time."""
        same = (
            self.index is not None
            and self.index.device == index.device
            and torch.equal(self.index, index)
        )
        if not same or self.drawn is None:
            self.index, self.drawn = index.clone(), make(index)
        return self.drawn


@dataclass
class ResampledClassMeans(Statistic):
    """Class means under many sets of sample weights, from weighted sums in float64.

    The weights of a sample depend on (seed, replicate, the sample's index) alone: any order, batch
    size and number of processes gives the same numbers. With Poisson weights of mean 1 each
    replicate is a bootstrap sample (the Poisson bootstrap: Chamandy et al. 2012); with halves, each
    sample is in one half or the other of every split by a fair coin.

    State: `sum` (classes, rows, units), `weight` (classes, rows) and `count` (classes,) of the
    classes in `label` (classes,), with one row a replicate, or two a split: 8 * rows * classes *
    units bytes, whatever the number of samples.

    Args:
        replicates: How many bootstrap replicates, or splits.
        weights: `"poisson"` or `"halves"`.
        seed: Seeds the weights.
        memory: Bytes that the states of all layers of a pass may take.

    Example:
        >>> means = ResampledClassMeans(replicates=2, weights="halves")
        >>> means.update(torch.rand(50, 3), torch.arange(50) % 2, torch.arange(50))
        >>> means.to_xarray()["class_mean"].dims
        ('replicate', 'half', 'unit', 'class')
    """

    replicates: int = 200
    weights: Weights = "poisson"
    seed: int = 0
    memory: int = field(default=2**31, compare=False)
    draw: Draw = field(default_factory=Draw, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        positive_int("replicates", self.replicates)
        one_of("weights", self.weights, ("poisson", "halves"))

    @property
    def rows(self) -> int:
        """How many sets of class means there are."""
        return self.replicates * (2 if self.weights == "halves" else 1)

    def expect(
        self, labels: Tensor | None, index: Tensor | None = None, layers: Sequence[Layer] = ()
    ) -> None:
        """Makes sure before a pass, where its labels are known, that memory will do.

        Args:
            labels: (samples,); None where they are not known.
            index: Not used.
            layers: The layers that will feed one statistic each.

        Raises:
            OptionError: The state needs more than `memory`; the message says what to lower.
        """
        if labels is not None:
            self._refuse(len(torch.unique(labels)), sum(layer.units for layer in layers))

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            activations: (batch, units).
            labels: (batch,), whole numbers from 0.
            index: (batch,), the samples' indices in the data.

        Raises:
            DataError: No indices, a label below 0, or not one label a row.
            OptionError: So many classes that the state would need more than `memory`.
        """
        index = checked_index(activations, labels, index)
        if not len(labels):
            return
        places = self._places(labels, activations)
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

    def merge(self, other: ResampledClassMeans) -> None:
        """Adds what another one has seen."""
        if other.state:
            places = self._places(other.state["label"], other.state["sum"][0])
            for name in ("sum", "weight", "count"):
                self.state[name][places] += other.state[name].to(places.device)

    def to_xarray(self) -> xr.Dataset:
        """`class_mean` (replicate, [half,] unit, class) and `weight` (replicate, [half,] class).

        Classes that have no sample are left out; a class mean is NaN where all its samples have
        weight 0.
        """
        if not self.state:
            raise DataError("class means of no samples at all")
        count, label = self.state["count"].cpu(), self.state["label"].cpu()
        present = count.nonzero()[:, 0]
        weight = self.state["weight"].cpu()[present]
        means = self.state["sum"].cpu()[present] / weight[:, :, None]
        halves = ("half",) if self.weights == "halves" else ()
        shape = (self.replicates, 2) if halves else (self.replicates,)
        return xr.Dataset(
            {
                "class_mean": (
                    ("replicate", *halves, "unit", "class"),
                    means.movedim(0, -1).reshape(*shape, -1, len(present)).numpy(),
                ),
                "weight": (
                    ("replicate", *halves, "class"),
                    weight.T.reshape(*shape, len(present)).numpy(),
                ),
            },
            coords={"class": label[present].numpy(), "count": ("class", count[present].numpy())},
        )

    def _weigh(self, index: Tensor) -> Tensor:
        drawn = streams.words(f"{self.weights} {self.seed}", self.replicates, index)
        if self.weights == "poisson":
            return streams.poisson(drawn).double()
        first = streams.coins(drawn)
        return torch.stack([first, ~first], 1).flatten(0, 1).double()

    def _refuse(self, classes: int, units: int) -> None:
        if not units:
            return
        tables = self.rows // self.replicates
        refuse_too_much(
            self.replicates, classes, units, self.memory, what="replicates", tables=tables
        )

    def _places(self, labels: Tensor, like: Tensor) -> Tensor:
        """The place of each label in the tables by class; new labels get one."""
        units = like.shape[-1]
        if not self.state:
            self.state["sum"] = accumulator((0, self.rows, units), like)
            self.state["weight"] = accumulator((0, self.rows), like)
            for name in ("count", "label"):
                self.state[name] = torch.zeros(
                    0, dtype=torch.int64, device=self.state["sum"].device
                )
        labels = labels.to(self.state["label"].device)
        known = torch.unique(torch.cat([self.state["label"], labels]))
        if len(known) > len(self.state["label"]):
            self._refuse(len(known), units)
        return rows_of(self.state, labels)


def checked_index(activations: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
    """The samples' indices, where a batch is one that can be resampled.

    Raises:
        DataError: No indices, a label below 0, or not one label a row.
    """
    if index is None:
        raise DataError("resampling needs the samples' indices, and the batch comes without any")
    if labels.shape != activations.shape[:1] or index.shape != labels.shape:
        raise DataError(
            f"{tuple(activations.shape)} activations need one label and one index a row, not "
            f"{tuple(labels.shape)} and {tuple(index.shape)}"
        )
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"label {int(labels.min())} is below 0")
    return index


def refuse_too_much(
    replicates: int, classes: int, units: int, memory: int, *, what: str, tables: int = 1
) -> None:
    """Raises where the sums of that many replicates would not fit into memory.

    Args:
        replicates: How many there are to be.
        classes: Number of classes.
        units: Number of units, of all layers together where they are known.
        memory: Bytes allowed.
        what: The option that says how many replicates there are.
        tables: Tables of (classes, units) a replicate.

    Raises:
        OptionError: It says what to lower, and to what.
    """
    each = 8 * tables * classes * units
    most = memory // each
    refuse_beyond(
        replicates * each,
        memory,
        f"{what}={replicates} for {units} units and {classes} classes",
        (f"lower {what} to {most}" if most else f"one alone needs {in_words(each)}")
        + ", record fewer layers",
    )
