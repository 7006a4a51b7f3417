"""Mean class selectivity of a batch: one differentiable number per layer from pooled activations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from probekit.errors import DataError
from probekit.metrics.selectivity.index import SelectivityIndex

TrainingNegative: TypeAlias = Literal["clip", "keep", "shift"]


def class_sums(tables: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
    """Sums activations (batch, units) by labels (batch,), which are below `classes`.

    The sums are (classes, units of all tables + 1); the last column is the number of samples.
    """
    rows = torch.cat([*tables, tables[0].new_ones(len(labels), 1)], 1)
    return rows.new_zeros(classes, rows.shape[1]).index_add(0, labels, rows)


def add_sums(one: Tensor, other: Tensor) -> Tensor:
    """Adds class sums, of which one may have fewer classes."""
    classes = max(len(one), len(other))
    pad = torch.nn.functional.pad
    return pad(one, (0, 0, 0, classes - len(one))) + pad(other, (0, 0, 0, classes - len(other)))


def batch_selectivity(
    sums: Tensor, *, eps: float = 1e-6, negative: TrainingNegative = "clip"
) -> tuple[Tensor, Tensor]:
    """Computes the index of every unit (units,), from class sums, over the classes that are present.

    The formula and its options are those of `class_selectivity`. The device is not synchronized. The
    index of a dead unit is zero and has no gradient. With fewer than two classes, all are zero and the
    returned boolean tensor is false.
    """
    total, count = sums[:, :-1], sums[:, -1].detach()
    present = count > 0
    enough = present.sum() > 1
    means = total / count.clamp(min=1)[:, None]
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


def sum_over_processes(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
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
