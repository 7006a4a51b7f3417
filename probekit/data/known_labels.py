"""The labels of data before the data is gone through, as far as the data tells them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from probekit.data.batches import Batches

__all__ = ["known_labels"]


def known_labels(batches: Batches) -> tuple[Tensor, Tensor | None] | None:
    """The labels of all samples that are to come, and the indices that they will have.

    Returns:
        Labels (samples,) and indices in increasing order (None where they are 0, 1, 2, ...); or None
        where the data cannot tell: streams, and data sets without `labels` or `targets`.

    >>> known_labels(Batches([(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))]))
    (tensor([0, 1]), None)
    """
    source = batches.source
    if isinstance(source, DataLoader):
        labels = _of_dataset(source.dataset)
        return None if labels is None or _resamples(source, len(labels)) else (labels, None)
    if isinstance(source, Dataset):
        labels, subset = _of_dataset(source), batches.subset()
        if labels is None or subset is None:
            return None if labels is None else (labels, None)
        return labels[subset], subset
    labels = _of_list(source)
    return None if labels is None else (labels[: batches.limit], None)


def _resamples(loader: DataLoader[Any], samples: int) -> bool:
    """Whether a loader gives other samples than those of its data set, each once."""
    try:
        return len(loader.sampler) != samples  # type: ignore[arg-type]
    except TypeError:
        return True


def _of_dataset(data: Any) -> Tensor | None:
    if isinstance(data, IterableDataset):
        return None
    if isinstance(data, Subset):
        labels = _of_dataset(data.dataset)
        return None if labels is None else labels[torch.as_tensor(list(data.indices))]
    if isinstance(data, TensorDataset):
        return _whole_numbers(data.tensors[1]) if len(data.tensors) == 2 else None
    labels = getattr(data, "labels", None)
    labels = _whole_numbers(getattr(data, "targets", None) if labels is None else labels)
    return labels if labels is None or len(labels) == len(data) else None


def _of_list(batches: Any) -> Tensor | None:
    if not isinstance(batches, list | tuple) or not batches:
        return None
    found = [
        _whole_numbers(batch[1]) if isinstance(batch, list | tuple) and len(batch) == 2 else None
        for batch in batches
    ]
    known = [labels for labels in found if labels is not None]
    return torch.cat(known) if len(known) == len(found) else None


def _whole_numbers(labels: Any) -> Tensor | None:
    """Labels as int64 (samples,), or None where that is not what they are."""
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = found.ndim == 1 and not found.is_floating_point() and found.dtype != torch.bool
    return found.long() if whole and not found.is_complex() else None
