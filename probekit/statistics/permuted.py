"""Class means under permuted labels: what a unit that knows nothing of the classes would show."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.checks import positive_int
from probekit.errors import DataError, OptionError
from probekit.runtime import randomness as streams
from probekit.statistics.base import Statistic, accumulator
from probekit.statistics.resampled import Draw, checked_index, refuse_too_much

__all__ = ["PermutedClassMeans", "Relabelling"]


@dataclass
class Relabelling:
    """Which label each sample has under each permutation, computed for a batch at a time.

    Attributes:
        counts: How many samples each class has (classes,).
        exact: Whether the labels are permuted, each class keeping its number of samples; otherwise
            every sample draws a label of its own, with these numbers as odds.
        index: The indices of the samples in increasing order; None where they are 0, 1, 2, ...
        draw: What was drawn for the last batch.
    """

    counts: Tensor | None = None
    exact: bool = False
    index: Tensor | None = None
    draw: Draw = field(default_factory=Draw)

    def labels(self, name: str, permutations: int, index: Tensor) -> Tensor:
        """The labels (permutations, batch) of the samples with these indices.

        Raises:
            DataError: A sample that was not announced.
        """
        assert self.counts is not None
        ends = self.counts.to(index.device).cumsum(0)
        size = int(ends[-1])
        if not self.exact:
            drawn = streams.uniform(streams.words(name, permutations, index)) * size
            return torch.bucketize(drawn.long().clamp(max=size - 1), ends, right=True)
        ranks = index
        if self.index is not None:
            known = self.index.to(index.device)
            ranks = torch.searchsorted(known, index)
            if not torch.equal(known[ranks.clamp(max=size - 1)], index):
                ranks = index.new_full((1,), size)
        if len(ranks) and (int(ranks.max()) >= size or int(ranks.min()) < 0):
            raise DataError(
                f"labels of {size} samples were announced, and one among the samples "
                f"{int(index.min())} to {int(index.max())} is none of them"
            )
        return torch.bucketize(streams.permuted(name, permutations, ranks, size), ends, right=True)


@dataclass
class PermutedClassMeans(Statistic):
    """Class means under random permutations of the labels, from sums in float64.

    Where the labels are known before the pass (`expect`), they are permuted exactly: a keyed
    bijection sends each sample to a place among the labels in order, so that each class keeps its
    number of samples and nothing but the class sizes is stored. Where they are not, every sample
    draws a label with `class_counts` as odds; class sizes then vary, which makes chance a little
    higher for classes of few samples. Either way a label depends on (seed, permutation, sample)
    alone, so that batch size, order and number of processes do not matter.

    State: `sum` (permutations, classes, units) and `count` (permutations, classes):
    8 * permutations * classes * units bytes, whatever the number of samples.

    Args:
        permutations: How many.
        seed: Seeds them.
        class_counts: How many samples each class has, in label order, for data that does not tell
            its labels in advance.
        memory: Bytes that the states of all layers of a pass may take.

    Raises:
        OptionError: Options that mean nothing, or too much memory.

    Source:
        Permutation tests: Phipson & Smyth 2010; the bijection: Black & Rogaway 2002.

    Example:
        >>> labels = torch.arange(60) % 3
        >>> means = PermutedClassMeans(permutations=4)
        >>> means.expect(labels)
        >>> means.update(torch.rand(60, 5), labels, torch.arange(60))
        >>> means.to_xarray().dims, means.state["count"][0].tolist()
        (('permutation', 'unit', 'class'), [20.0, 20.0, 20.0])
    """

    permutations: int = 200
    seed: int = 0
    class_counts: tuple[int, ...] | None = None
    memory: int = field(default=2**31, compare=False)
    relabelling: Relabelling = field(
        default_factory=Relabelling, compare=False, repr=False, kw_only=True
    )

    def __post_init__(self) -> None:
        positive_int("permutations", self.permutations)
        if self.class_counts is not None:
            counts = torch.tensor(tuple(self.class_counts))
            if len(counts) < 2 or counts.is_floating_point() or int(counts.min()) < 0:
                raise OptionError(
                    "class_counts must be whole numbers of samples for two classes or more, not "
                    f"{self.class_counts!r}"
                )
            if self.relabelling.counts is None:
                self.relabelling.counts = counts

    def expect(
        self, labels: Tensor | None, index: Tensor | None = None, layers: Sequence[Layer] = ()
    ) -> None:
        """Learns the labels of all samples before a pass, and makes sure that memory will do.

        What is learnt holds for all statistics that were made from this one by `fresh`.

        Args:
            labels: (samples,), of all processes together; None where they are not known.
            index: Their indices in increasing order; None where they are 0, 1, 2, ...
            layers: The layers that will feed one statistic each.

        Raises:
            OptionError: The state needs more than `memory`; the message says what to lower.
        """
        known = self.relabelling
        known.draw.index, known.index, known.exact = None, index, labels is not None
        if labels is not None:
            known.counts = torch.unique(labels.cpu(), return_counts=True)[1]
        else:
            given = self.class_counts
            known.counts = None if given is None else torch.tensor(tuple(given))
        if known.counts is not None:
            self._refuse(len(known.counts), sum(layer.units for layer in layers))

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            activations: (batch, units).
            labels: (batch,), whole numbers from 0; only their number counts here.
            index: (batch,), the samples' indices in the data.

        Raises:
            DataError: No indices, labels that are no labels, or a sample that was not announced.
            OptionError: How many samples each class has is not known.
        """
        index = checked_index(activations, labels, index)
        if self.relabelling.counts is None:
            raise OptionError(
                "permuted labels need to know how many samples each class has, and the data does "
                "not tell its labels before the pass; give class_counts=(..., ...)"
            )
        if not len(labels):
            return
        self._reserve(activations)
        total, count = self.state["sum"], self.state["count"]
        drawn = self.relabelling.draw.of(index.to(total.device), self._relabel)
        values = activations.detach().to(device=total.device).to(torch.float64)
        if drawn.layout is torch.sparse_csr:
            total.view(-1, total.shape[2]).add_(drawn @ values)
            count.view(-1).add_(drawn.crow_indices().diff())
            return
        ones = torch.ones(len(values), dtype=count.dtype, device=count.device)
        for permutation, drawn_labels in enumerate(drawn):
            total[permutation].index_add_(0, drawn_labels, values)
            count[permutation].index_add_(0, drawn_labels, ones)

    def merge(self, other: PermutedClassMeans) -> None:
        """Adds what another one has seen."""
        for name, values in other.state.items():
            known = self.state.get(name)
            self.state[name] = values.clone() if known is None else known + values.to(known.device)

    def to_xarray(self) -> xr.DataArray:
        """`class_mean` (permutation, unit, class); NaN for a class that got no sample."""
        if not self.state:
            raise DataError("class means of no samples at all")
        count = self.state["count"].cpu()
        present = count.sum(0).nonzero()[:, 0]
        means = self.state["sum"].cpu()[:, present] / count[:, present, None]
        return xr.DataArray(
            means.transpose(1, 2).numpy(),
            dims=("permutation", "unit", "class"),
            coords={"class": present.numpy()},
            name="class_mean",
        )

    def _relabel(self, index: Tensor) -> Tensor:
        """The labels (permutations, batch), or the matrix of zeros and ones that sums by them.

        The matrix has a row a (permutation, class): one product sums them all. It pays as long as
        most rows have a sample.
        """
        labels = self.relabelling.labels(f"permuted {self.seed}", self.permutations, index)
        assert self.relabelling.counts is not None
        classes, batch = len(self.relabelling.counts), len(index)
        if classes > batch:
            return labels
        steps = torch.arange(self.permutations, device=index.device)[:, None] * classes
        rows = (labels + steps).flatten()
        ends = torch.bincount(rows, minlength=self.permutations * classes).cumsum(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
            return torch.sparse_csr_tensor(
                torch.cat([ends.new_zeros(1), ends]),
                rows.argsort(stable=True) % batch,
                torch.ones(len(rows), dtype=torch.float64, device=index.device),
                (self.permutations * classes, batch),
                check_invariants=False,
            )

    def _refuse(self, classes: int, units: int) -> None:
        if units:
            refuse_too_much(self.permutations, classes, units, self.memory, what="permutations")

    def _reserve(self, like: Tensor) -> None:
        if not self.state:
            assert self.relabelling.counts is not None
            classes, units = len(self.relabelling.counts), like.shape[1]
            self._refuse(classes, units)
            self.state["sum"] = accumulator((self.permutations, classes, units), like)
            self.state["count"] = accumulator((self.permutations, classes), like)
