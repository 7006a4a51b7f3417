"""A test for statistics: the properties on which analyses rely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from probekit.errors import ProbekitError
from probekit.statistics.base import StatisticLike


def check_statistic(
    statistic: StatisticLike,
    activations: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    rtol: float = 1e-9,
    device: str | torch.device = "cpu",
) -> None:
    """Checks that a statistic has the properties on which analyses rely.

    The same samples must give the same result in any batches, in any order, and when merged from any
    parts in any order. Half precision must be summed without loss. Batches must not be modified, and
    later modifications of a batch must not affect the statistic. The state must survive saving as
    safetensors and a move to another device. An empty statistic must raise a `ProbekitError`.

    Args:
        statistic: The statistic, which is not changed, or its class.
        activations: (rows, columns) to update it with; None draws 24 rows of 5 columns.
        labels: (rows,); None cycles through three classes.
        rtol: Tolerance relative to the largest value.
        device: An additional device on which to check it.

    Raises:
        AssertionError: It lacks a property, which the message names.

    Example:
        >>> from probekit.statistics.class_means import ClassMeans
        >>> check_statistic(ClassMeans())
    """
    if isinstance(statistic, type):
        statistic = statistic()
    if activations is None:
        generator = torch.Generator().manual_seed(0)
        activations = torch.rand(24, 5, generator=generator) + 0.1
    if labels is None:
        labels = torch.arange(len(activations)) % 3
    trial = _Trial(statistic, activations, labels, rtol)
    _check_batches(trial)
    _check_merge(trial)
    _check_values(trial)
    _check_fresh(trial)
    _check_state(trial, device)


class _Trial:
    """A statistic, samples, and the expected result from one update with all samples."""

    def __init__(
        self, statistic: StatisticLike, activations: Tensor, labels: Tensor, rtol: float
    ) -> None:
        if not isinstance(statistic, StatisticLike):
            raise AssertionError(
                f"{statistic!r} is not a statistic: it needs fresh, update, merge and to_xarray"
            )
        self.statistic, self.activations, self.labels = statistic, activations, labels
        self.rtol = rtol
        self.rows = torch.arange(len(activations))
        self.whole = self.fed([self.rows]).to_xarray()

    def fed(self, batches: Sequence[Tensor], into: Any = None) -> Any:
        """A statistic (empty unless given) after updates with batches of rows, given by number."""
        one = self.statistic.fresh() if into is None else into
        for rows in batches:
            one.update(self.activations[rows].clone(), self.labels[rows].clone(), rows.clone())
        return one

    def same(self, one: Any, what: str, whole: Any = None) -> None:
        """Raises unless a statistic equals one that was updated with all rows at once."""
        try:
            _compare(one.to_xarray(), self.whole if whole is None else whole, self.rtol)
        except AssertionError as error:
            raise AssertionError(f"{what} must not change the statistic:\n{error}") from None


def _check_batches(trial: _Trial) -> None:
    for size in (1, 2, 7):
        trial.same(trial.fed(torch.split(trial.rows, size)), f"batches of {size}")
    for seed in range(3):
        rows = torch.randperm(len(trial.rows), generator=torch.Generator().manual_seed(seed))
        trial.same(trial.fed(torch.split(rows, 5)), "samples in another order")
    trial.same(trial.fed([trial.rows[:0], trial.rows, trial.rows[:0]]), "batches of no sample")


def _check_merge(trial: _Trial) -> None:
    cuts = (1, 8, len(trial.rows))
    parts = [trial.rows[start:stop] for start, stop in zip((0, *cuts), cuts, strict=False)]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        merged = trial.statistic.fresh()
        for number in order:
            merged.merge(trial.fed([parts[number]]))
            merged.merge(trial.statistic.fresh())
        trial.same(merged, f"parts merged in the order {order}")
    pair = trial.fed([parts[1]])
    pair.merge(trial.fed([parts[2]]))
    left = trial.fed([parts[0]])
    left.merge(pair)
    trial.same(left, "a part merged with parts that were merged before")
    for taker in (trial.statistic.fresh(), trial.fed([parts[0]])):
        taker.merge(pair)
        trial.fed([parts[0]], into=taker)
        whole = trial.fed([parts[1], parts[2]]).to_xarray()
        trial.same(pair, "being merged into another one, which is updated further,", whole)


def _check_values(trial: _Trial) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        half, double = trial.statistic.fresh(), trial.statistic.fresh()
        for rows in torch.split(trial.rows, 10):
            values = trial.activations[rows].to(dtype)
            half.update(values.clone(), trial.labels[rows], rows)
            double.update(values.double(), trial.labels[rows], rows)
        trial.same(half, f"{dtype} input", double.to_xarray())
    one = trial.statistic.fresh()
    one.update(trial.activations.clone().requires_grad_(), trial.labels, trial.rows)
    trial.same(one, "activations that require gradients")
    activations, labels = trial.activations.clone(), trial.labels.clone()
    one = trial.statistic.fresh()
    one.update(activations, labels, trial.rows.clone())
    if not (torch.equal(activations, trial.activations) and torch.equal(labels, trial.labels)):
        raise AssertionError("update changes the batch that it is given")
    activations.zero_()
    labels.zero_()
    trial.same(one, "a batch that changed after update")
    trial.same(one, "a second call of to_xarray")


def _check_fresh(trial: _Trial) -> None:
    one = trial.fed([trial.rows])
    again = one.fresh()
    if again != one or again != trial.statistic:
        raise AssertionError("fresh() must return an equal statistic: metrics share equal ones")
    trial.same(trial.fed([trial.rows], into=again), "a fresh copy of one that has had samples")
    trial.same(one, "one whose fresh copy was fed")
    try:
        trial.fed([trial.rows[:0]]).to_xarray()
    except ProbekitError:
        return
    raise AssertionError("to_xarray() of a statistic without samples must raise a ProbekitError")


def _check_state(trial: _Trial, device: str | torch.device) -> None:
    from safetensors.torch import load, save

    one = trial.fed([trial.rows[:9]])
    if hasattr(one, "state"):
        saved = save({name: values.contiguous() for name, values in one.state.items()})
        again: Any = trial.statistic.fresh()
        again.state = load(saved)
        trial.same(trial.fed([trial.rows[9:]], into=again), "a state that was saved and loaded")
    if hasattr(one, "to"):
        one.to(device)
    for rows in torch.split(trial.rows[9:], 4):
        one.update(trial.activations[rows].to(device), trial.labels[rows].to(device), rows)
    merged = trial.statistic.fresh()
    merged.merge(one)
    trial.same(merged, f"batches on {device}")


def _compare(found: Any, expected: Any, rtol: float) -> None:
    """Raises unless two tables have the same names, and equal values within the tolerance."""
    if isinstance(expected, xr.Dataset):
        names, wanted = (sorted(map(str, table.variables)) for table in (found, expected))
        if names != wanted:
            raise AssertionError(f"it has {', '.join(names)} instead of {', '.join(wanted)}")
        for name in expected.variables:
            xr.testing.assert_allclose(
                found[name].drop_vars(found.coords, errors="ignore"),
                expected[name].drop_vars(expected.coords, errors="ignore"),
                rtol=rtol,
                atol=rtol * _size(expected[name]),
            )
    else:
        xr.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * _size(expected))


def _size(values: xr.DataArray) -> float:
    if values.dtype.kind not in "fiu" or not values.size:
        return 0.0
    return float(abs(values).max(skipna=True).fillna(0.0))
