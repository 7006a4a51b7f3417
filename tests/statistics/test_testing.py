"""Every statistic passes the contract check, and each kind of faulty statistic fails it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import xarray as xr

from probekit.errors import DataError
from probekit.statistics.base import Statistic
from probekit.statistics.class_means import ClassMeans, ClassMoments
from probekit.statistics.covariance import Covariance
from probekit.statistics.recorded import Recorded
from probekit.statistics.silent import SilentCounts
from probekit.statistics.testing import check_statistic

STATISTICS = [
    ClassMeans(),
    ClassMoments(),
    Covariance(),
    Covariance(centered=False),
    Covariance("positions"),
    Covariance("flatten"),
    Covariance("flatten", centered=False),
    Recorded(),
    SilentCounts(threshold=0.5),
]


@pytest.mark.parametrize("statistic", STATISTICS, ids=repr)
def test_statistics_satisfy_the_contract(statistic: Any) -> None:
    check_statistic(statistic)


@pytest.mark.parametrize("columns", [1, 3, 23, 24, 25, 60])
def test_flattened_covariance_with_fewer_and_more_rows_than_dimensions(columns: int) -> None:
    rows = torch.rand(24, columns, generator=torch.Generator().manual_seed(1)) * 3 + 5
    check_statistic(Covariance("flatten"), rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("statistic", STATISTICS, ids=repr)
def test_statistics_on_a_gpu(statistic: Any) -> None:
    check_statistic(statistic, device="cuda")


@dataclass
class Total(Statistic):
    """Sums of units: a correct statistic from which the faulty ones below derive."""

    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        if len(activations):
            self.state["sum"] = self.state.get("sum", 0) + activations.detach().double().sum(0)

    def merge(self, other: Any) -> None:
        if other.state:
            self.state["sum"] = self.state.get("sum", 0) + other.state["sum"]

    def to_xarray(self) -> xr.DataArray:
        if not self.state:
            raise DataError("no samples")
        return xr.DataArray(self.state["sum"].cpu().numpy(), dims="unit")


class InModelPrecision(Total):
    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        if len(activations):
            total = activations.detach().sum(0)
            self.state["sum"] = self.state.get("sum", 0) + total


class LastBatchOnly(Total):
    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        if len(activations):
            self.state["sum"] = activations.detach().double().sum(0)


class WeighsByOrder(Total):
    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        for row in activations.detach().double():
            self.state["sum"] = self.state.get("sum", 0) * 0.9 + row


class ForgetsToMerge(Total):
    def merge(self, other: Any) -> None:
        pass


class MergesBySharing(Total):
    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        if len(activations):
            if not self.state:
                self.state["sum"] = torch.zeros(activations.shape[1], dtype=torch.float64)
            self.state["sum"] += activations.detach().double().sum(0)

    def merge(self, other: Any) -> None:
        if not self.state:
            self.state = dict(other.state)
        elif other.state:
            self.state["sum"] += other.state["sum"]


class ChangesTheBatch(Total):
    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        super().update(activations, labels, index)
        activations.detach().mul_(0)


class KeepsTheBatch(Total):
    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        if len(activations):
            self.rows = [*getattr(self, "rows", []), activations.detach()]
            self.state["sum"] = sum(rows.double().sum(0) for rows in self.rows)

    def to_xarray(self) -> xr.DataArray:
        if hasattr(self, "rows"):
            self.state["sum"] = sum(rows.double().sum(0) for rows in self.rows)
        return super().to_xarray()


class SharesItsState(Total):
    def fresh(self) -> Any:
        return self if self.state else Total.fresh(self)


class SpeaksOfNothing(Total):
    def to_xarray(self) -> xr.DataArray:
        return super().to_xarray() if self.state else xr.DataArray([0.0], dims="unit")


class KeepsNumbersOutsideItsState(Total):
    count = 0

    def update(self, activations: Any, labels: Any, index: Any = None) -> None:
        super().update(activations, labels, index)
        self.count += len(activations)

    def merge(self, other: Any) -> None:
        super().merge(other)
        self.count += other.count

    def to_xarray(self) -> xr.DataArray:
        return super().to_xarray() / self.count


def test_a_correct_statistic_passes() -> None:
    check_statistic(Total())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (InModelPrecision, "must not change"),
        (LastBatchOnly, "batches of 1"),
        (WeighsByOrder, "another order"),
        (ForgetsToMerge, "."),
        (MergesBySharing, "merged"),
        (ChangesTheBatch, "changes the batch"),
        (KeepsTheBatch, "."),
        (SharesItsState, "."),
        (SpeaksOfNothing, "without samples must raise"),
        (KeepsNumbersOutsideItsState, "saved and loaded"),
    ],
)
def test_a_faulty_statistic_fails(wrong: type[Total], words: str) -> None:
    with pytest.raises((AssertionError, DataError), match=words):
        check_statistic(wrong())


def test_an_object_that_is_not_a_statistic_is_refused() -> None:
    with pytest.raises(AssertionError, match="needs fresh, update, merge and to_xarray"):
        check_statistic(object())  # type: ignore[arg-type]
