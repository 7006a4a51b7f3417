"""Class means under permuted labels, the null distribution of units unrelated to the classes."""

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
from probekit.statistics.base import Statistic, accumulator, add_to
from probekit.statistics.resampled import CachedDraw, check_replicates, checked_index


@dataclass
class Relabeling:
    """The label of each sample under each permutation, computed batch by batch.

    Labels are permuted exactly, preserving the size of each class (`counts`), or drawn independently for
    every sample, with probabilities proportional to `counts`. `index` holds the indices of the samples in
    increasing order; None if they are 0, 1, 2, ...
    """

    counts: Tensor | None = None
    exact: bool = False
    index: Tensor | None = None
    draw: CachedDraw = field(default_factory=CachedDraw)

    def labels(self, name: str, permutations: int, index: Tensor) -> Tensor:
        """The labels (permutations, batch) of the samples with these indices."""
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
                f"labels of {size} samples were given before the pass, and they do not include all of "
                f"the samples {int(index.min())} to {int(index.max())}"
            )
        return torch.bucketize(streams.permuted(name, permutations, ranks, size), ends, right=True)


@dataclass
class PermutedClassMeans(Statistic):
    """Class means under random permutations of the labels, computed from sums in float64.

    If the labels are known before the pass (`expect`), they are permuted exactly: a keyed bijection maps
    each sample to a position in the sorted labels. This preserves the size of each class, and only
    the class sizes are stored. Otherwise, every sample draws a label with probabilities proportional
    to `class_counts`. Class sizes then vary, which slightly raises the chance level for classes with
    few samples. In both cases a label depends only on (seed, permutation, sample), not on batch size,
    order or the number of processes.

    State: `sum` (permutations, classes, units) and `count` (permutations, classes), which in all layers of a
    pass take at most `memory` bytes, whatever the number of samples.

    Source:
        Permutation tests: Phipson & Smyth 2010; the bijection: Black & Rogaway 2002.
    """

    permutations: int = 200
    seed: int = 0
    class_counts: tuple[int, ...] | None = None
    memory: int = field(default=2**31, compare=False)
    relabeling: Relabeling = field(
        default_factory=Relabeling, compare=False, repr=False, kw_only=True
    )

    def __post_init__(self) -> None:
        positive_int("permutations", self.permutations)
        if self.class_counts is not None:
            counts = torch.tensor(tuple(self.class_counts))
            if len(counts) < 2 or counts.is_floating_point() or int(counts.min()) < 0:
                raise OptionError(
                    "class_counts must be non-negative integers for two classes or more, not "
                    f"{self.class_counts!r}"
                )
            if self.relabeling.counts is None:
                self.relabeling.counts = counts

    @property
    def needs_labels(self) -> bool:
        """Whether the labels must be known before the pass, since their numbers are not given."""
        return self.class_counts is None

    def expect(
        self, labels: Tensor | None, index: Tensor | None = None, layers: Sequence[Layer] = ()
    ) -> None:
        """Receives the labels of all samples, and checks that the states fit into memory.

        They are those of all processes, and apply to all statistics that were created from this one
        with `fresh`. `index` is in increasing order, None for 0, 1, 2, ...; each layer updates one
        statistic.
        """
        known = self.relabeling
        known.draw.index, known.index, known.exact = None, index, labels is not None
        if labels is not None:
            known.counts = torch.unique(labels.cpu(), return_counts=True)[1]
        else:
            given = self.class_counts
            known.counts = None if given is None else torch.tensor(tuple(given))
        if known.counts is not None:
            self._check(len(known.counts), sum(layer.units for layer in layers))

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Updates the means with a batch (batch, units), its labels and its indices (batch,)."""
        index = checked_index(activations, labels, index)
        if (counts := self.relabeling.counts) is None:
            raise OptionError(
                "permuted labels need the number of samples of each class, and the labels of the "
                "data are not known before the pass; pass class_counts=(..., ...)"
            )
        if not len(labels):
            return
        if not self.state:
            shape = (self.permutations, len(counts), activations.shape[1])
            self._check(*shape[1:])
            self.state["sum"] = accumulator(shape, activations)
            self.state["count"] = accumulator(shape[:2], activations)
        total, count = self.state["sum"], self.state["count"]
        drawn = self.relabeling.draw.of(index.to(total.device), self._relabel)
        values = activations.detach().to(device=total.device).to(torch.float64)
        total.view(-1, total.shape[2]).add_(drawn @ values)
        count.view(-1).add_(drawn.crow_indices().diff())

    def merge(self, other: PermutedClassMeans) -> None:
        add_to(self.state, other.state)

    def to_xarray(self) -> xr.DataArray:
        """`class_mean` (permutation, unit, class); NaN for a class without samples."""
        state = self._on_cpu()
        count = state["count"]
        present = count.sum(0).nonzero()[:, 0]
        means = state["sum"][:, present] / count[:, present, None]
        return xr.DataArray(
            means.transpose(1, 2).numpy(),
            dims=("permutation", "unit", "class"),
            coords={"class": present.numpy()},
            name="class_mean",
        )

    def _relabel(self, index: Tensor) -> Tensor:
        """The 0/1 matrix that sums a batch by label, with one row per (permutation, class)."""
        assert self.relabeling.counts is not None
        classes, batch = len(self.relabeling.counts), len(index)
        labels = self.relabeling.labels(f"permuted {self.seed}", self.permutations, index)
        steps = torch.arange(self.permutations, device=index.device)[:, None] * classes
        columns = torch.arange(batch, device=index.device).repeat(self.permutations)
        matrix = torch.sparse_coo_tensor(
            torch.stack([(labels + steps).flatten(), columns]),
            torch.ones(len(columns), dtype=torch.float64, device=index.device),
            (self.permutations * classes, batch),
            check_invariants=False,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
            return matrix.to_sparse_csr()

    def _check(self, classes: int, units: int) -> None:
        check_replicates("permutations", self.permutations, classes, units, self.memory)
