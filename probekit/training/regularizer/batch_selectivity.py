"""Mean class selectivity of a batch: one differentiable number per layer from pooled activations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from probekit.errors import DataError
from probekit.metrics.selectivity.index import SelectivityIndex

TrainingNegative: TypeAlias = Literal["clip", "keep", "shift"]


@dataclass(frozen=True)
class ClassSums:
    """Sums of activations by class (classes, units), and the number of samples of each (classes,)."""

    sum: Tensor
    count: Tensor

    @classmethod
    def of(cls, activations: Tensor, labels: Tensor, classes: int) -> ClassSums:
        """Sums activations (batch, units) by labels (batch,), which are below `classes`."""
        empty = activations.new_zeros(classes, activations.shape[1])
        ones = activations.new_ones(len(labels))
        count = activations.new_zeros(classes)
        return cls(empty.index_add(0, labels, activations), count.index_add(0, labels, ones))

    def __add__(self, other: ClassSums) -> ClassSums:
        classes = max(len(self.count), len(other.count))
        one, two = self._grown(classes), other._grown(classes)
        return ClassSums(one.sum + two.sum, one.count + two.count)

    def _grown(self, classes: int) -> ClassSums:
        more = classes - len(self.count)
        pad = torch.nn.functional.pad
        return ClassSums(pad(self.sum, (0, 0, 0, more)), pad(self.count, (0, more)))

    def detach(self) -> ClassSums:
        """The same numbers, outside the graph."""
        return ClassSums(self.sum.detach(), self.count)

    def over_processes(self, group: dist.ProcessGroup | None = None) -> ClassSums:
        """The sums over the batches of all processes, which must have the same number of classes."""
        both = torch.cat([self.sum, self.count[:, None]], 1)
        both = sum_over_processes(both, group)
        return ClassSums(both[:, :-1], both[:, -1].detach())


def batch_selectivity(
    sums: ClassSums, *, eps: float = 1e-6, negative: TrainingNegative = "clip"
) -> tuple[Tensor, Tensor]:
    """Computes the class selectivity index of every unit (units,) over the classes that are present.

    The formula and its options are those of `class_selectivity`. The device is not synchronized. The
    index of a dead unit is zero and has no gradient. With fewer than two classes, all are zero and the
    returned boolean tensor is false.
    """
    present = sums.count > 0
    enough = present.sum() > 1
    means = sums.sum / sums.count.clamp(min=1)[:, None]
    means = means.masked_fill(~present[:, None], torch.nan)
    index = SelectivityIndex(eps, negative).at(means.T)
    return torch.where(enough, index, 0), enough


def check_labels(labels: object, batch: int) -> None:
    """Checks that there is one integer for each sample."""
    if not isinstance(labels, Tensor):
        raise DataError(f"labels must be a tensor of integers, not {type(labels).__name__}")
    if labels.ndim == 2 or labels.is_floating_point():
        raise DataError(
            f"labels {tuple(labels.shape)} of {labels.dtype} are soft, as mixup makes them, and have no "
            "class means; give one integer per sample, or train without mixing"
        )
    if labels.dtype == torch.bool or labels.shape != (batch,):
        raise DataError(
            f"{batch} samples need one integer each as label, not "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )


def by_layer(index: Tensor, units: Sequence[int]) -> Tensor:
    """The mean over the units of each layer, (layers,), from the concatenated units of all layers."""
    layer, count = _layer_of_unit(tuple(units), index.device)
    return index.new_zeros(len(units)).index_add(0, layer, index) / count


@functools.lru_cache(maxsize=32)
def _layer_of_unit(units: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The index of each unit's layer, and the number of units of each layer."""
    # Cached tensors may later be used in autograd, so they must not be inference tensors.
    with torch.inference_mode(mode=False):
        count = torch.tensor(units, device=device)
        return torch.arange(len(units), device=device).repeat_interleave(count), count


def sum_over_processes(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sums a tensor over all processes; its gradient is summed over them as well.

    If each process adds the same function of the sum to its loss, and gradients are averaged over
    processes as in `DistributedDataParallel`, the gradient equals that of one process with the whole
    batch.
    """
    total: Tensor = _SumOverProcesses.apply(tensor, group)
    return total


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return sum_over_processes(gradient, ctx.group), None
