"""The covariance spectrum of a table, compared with scikit-learn's PCA and IncrementalPCA.

python benchmarks/covariance.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import (
    Case,
    Contender,
    Missing,
    Question,
    Row,
    Setting,
    always,
    cost,
    gain,
    main,
    peer,
    versus,
)
from torch import Tensor

from probekit.metrics.dimensionality import eigenvalues, participation_ratio
from probekit.statistics.covariance import Covariance

OURS = "pk.Covariance, streamed"
PRODUCT = "one product of the table with itself"
BATCH = 1024
WIDE = 512
BOUND = 1.1  # for the wide table


def cases(setting: Setting) -> Iterator[Case]:
    for units in (64, WIDE):
        yield Case(f"20,000 samples of {units} units", partial(compared, units, setting))


def compared(units: int, setting: Setting) -> Iterator[Row]:
    table = correlated(setting.size(20_000, 2_048), setting.size(units, 16))
    on_device, array = table.to(setting.device), table.numpy()
    ways: dict[str, Any] = {
        OURS: lambda: streamed(on_device),
        "PCA": peer(
            "sklearn.decomposition",
            lambda sk: lambda: fitted(sk.PCA(svd_solver="covariance_eigh"), array),
        ),
        "IncrementalPCA": peer(
            "sklearn.decomposition",
            lambda sk: lambda: fitted(sk.IncrementalPCA(batch_size=BATCH), array),
        ),
    }
    ways[PRODUCT] = lambda: on_device.T @ on_device
    contenders: dict[str, Contender | Missing] = {
        name: way if isinstance(way, Missing) else always(way) for name, way in ways.items()
    }
    found = {
        name: way()
        for name, way in ways.items()
        if not isinstance(way, Missing) and name != PRODUCT
    }
    exact = of_spectrum(np.linalg.eigvalsh(np.cov(array.astype(np.float64), rowvar=False)))
    errors = ", ".join(f"{name} {abs(value / exact - 1):.0e}" for name, value in found.items())
    times = setting.take_turns(contenders)
    note = f"relative error of the participation ratio, against numpy in float64: {errors}"
    bound = cost(BOUND if units == WIDE else None)
    asked = {"PCA": bound, "IncrementalPCA": gain(), PRODUCT: cost()}
    yield from versus(times, OURS, asked, note)


def streamed(table: Tensor) -> float:
    """The participation ratio after batch-wise updates in float64 and all eigenvalues."""
    statistic = Covariance()
    labels = torch.zeros(BATCH, dtype=torch.long, device=table.device)
    for rows in table.split(BATCH):
        statistic.update(rows, labels[: len(rows)])
    found = statistic.to_xarray()
    eigenvalues(found)
    return participation_ratio(found).item()


def fitted(estimator: Any, array: np.ndarray) -> float:
    """The participation ratio from all explained variances."""
    return of_spectrum(estimator.fit(array).explained_variance_)


def of_spectrum(variances: np.ndarray) -> float:
    variances = variances.astype(np.float64)
    return float(variances.sum() ** 2 / (variances**2).sum())


def correlated(samples: int, units: int) -> Tensor:
    """Rectified float32 features with decaying variances, similar to those of a layer."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(units, units, generator=generator) / torch.arange(1, units + 1).sqrt()
    return (torch.randn(samples, units, generator=generator) @ mixing.T + 0.5).relu()


QUESTION = Question(
    "covariance",
    "What does a covariance cost compared with scikit-learn?",
    "All eigenvalues and the participation ratio of one float32 table in memory. `pk.Covariance` is "
    "updated with batches of 1,024 and sums in float64. scikit-learn's `IncrementalPCA` uses batches of "
    'the same size in float32; `PCA` (`svd_solver="covariance_eigh"`) needs the whole table at once, and '
    "NumPy computes only half of its product of the table with itself, since that is symmetric. PyTorch "
    "computes all of it, which is our floor: with products by NumPy between the operations of PyTorch it "
    "took two to ten times as long, because the threads of both compete for the cores.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
