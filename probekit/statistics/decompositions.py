"""Eigenvalues and singular values of small matrices, in one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_FEW_COLUMNS = 2048


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """The eigenvalues (n,) of a symmetric matrix (n, n), in ascending order."""
    with _threads_for(len(matrix)):
        values: Tensor = torch.linalg.eigvalsh(matrix)
    return values


def singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), singular values (k,) in descending order, and V' (k, n) of a matrix (m, n), k = min(m, n)."""
    with _threads_for(min(matrix.shape)):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


@contextmanager
def _threads_for(columns: int) -> Iterator[None]:
    """One thread for few columns, whose threads would wait for each other at every step.

    In a process with several threads, and with other load on the machine, the eigenvalues of 1,000
    columns take seconds rather than 0.1 s. NumPy's threads also compete with PyTorch's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if columns <= _FEW_COLUMNS else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
