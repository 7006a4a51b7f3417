"""Moments up to the fourth against sums that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.statistics import moments


def written_out(rows: np.ndarray, point: np.ndarray) -> dict[str, np.ndarray]:
    z = rows.astype(np.float64) - point
    squares = (z**2).sum(1)
    return {
        "count": np.array(len(z)),
        "first": z.sum(0),
        "second": z.T @ z,
        "third": (squares[:, None] * z).sum(0),
        "fourth": (squares**2).sum(),
    }


def fed(rows: np.ndarray) -> dict[str, torch.Tensor]:
    found = moments.begin(torch.from_numpy(rows))
    moments.add(found, torch.from_numpy(rows))
    return found


def compare(found: moments.Moments, expected: dict[str, np.ndarray], rtol: float = 1e-11) -> None:
    for name, values in expected.items():
        size = max(1.0, abs(values).max())
        np.testing.assert_allclose(found[name].numpy(), values, rtol, rtol * size, err_msg=name)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 20), columns=st.integers(1, 6))
def test_moving_the_point_is_exact(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    table, point = rng.exponential(size=(rows, columns)), rng.normal(size=columns) * 3
    compare(moments.about(fed(table), torch.from_numpy(point)), written_out(table, point))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_joining_in_any_order_gives_the_moments_of_all(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal() * 4, rng.exponential() + 0.1, (size, 3)) for size in sizes]
    whole = np.concatenate(parts)
    for order in (range(len(parts)), rng.permutation(len(parts))):
        joined: moments.Moments = fed(parts[order[0]])
        for number in order[1:]:
            joined = moments.join(joined, fed(parts[number]))
        np.testing.assert_allclose(joined["shift"], whole.mean(0), rtol=1e-12, atol=1e-12)
        compare(joined, written_out(whole, joined["shift"].numpy()))


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).normal(size=(1000, 4))
    whole = fed(table)
    monkeypatch.setattr(moments, "BLOCK_ELEMENTS", 4 * 300)
    compare(moments.about(fed(table), whole["shift"]), {k: v.numpy() for k, v in whole.items()})


def test_constant_columns_do_not_vary_at_all() -> None:
    table = np.full((37, 3), 0.1, np.float32)
    found = moments.join(fed(table), fed(table[:5]))
    assert not found["second"].any()
    assert not found["fourth"].any()


def test_the_mean_of_rows_that_come_in_parts() -> None:
    table = np.random.default_rng(0).normal(1e6, 1, size=(50, 4))
    found = fed(table[:1])
    moments.add(found, torch.from_numpy(table[1:]))
    np.testing.assert_allclose(moments.mean(found), table.mean(0), rtol=1e-15)
