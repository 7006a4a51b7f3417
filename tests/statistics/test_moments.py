"""Moments up to the fourth compared with explicit sums."""

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
def test_moving_the_reference_point_is_exact(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    table, point = rng.exponential(size=(rows, columns)), rng.normal(size=columns) * 3
    compare(moments.about(fed(table), torch.from_numpy(point)), written_out(table, point))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_merging_in_any_order_gives_the_moments_of_all_rows(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal() * 4, rng.exponential() + 0.1, (size, 3)) for size in sizes]
    whole = np.concatenate(parts)
    for order in (range(len(parts)), rng.permutation(len(parts))):
        joined: moments.Moments = fed(parts[order[0]])
        for number in order[1:]:
            joined = moments.join(joined, fed(parts[number]))
        np.testing.assert_allclose(joined["shift"], whole.mean(0), rtol=1e-12, atol=1e-12)
        compare(joined, written_out(whole, joined["shift"].numpy()))


def test_block_size_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).normal(size=(1000, 4))
    whole = fed(table)
    monkeypatch.setattr(moments, "_BLOCK_BYTES", 8 * 4 * 300)
    compare(moments.about(fed(table), whole["shift"]), {k: v.numpy() for k, v in whole.items()})


def test_accelerators_sum_few_large_blocks() -> None:
    rows = torch.zeros(100_000, 64)
    blocks = {
        device: [len(one) for one in moments._blocks(rows, torch.device(device))]
        for device in ("cpu", "meta")  # which stands for an accelerator
    }
    assert sum(blocks["cpu"]) == sum(blocks["meta"]) == 100_000
    assert len(blocks["meta"]) == 4
    assert len(blocks["cpu"]) == 49


def test_constant_columns_have_no_variance() -> None:
    table = np.full((37, 3), 0.1, np.float32)
    found = moments.join(fed(table), fed(table[:5]))
    assert not found["second"].any()
    assert not found["fourth"].any()


def test_the_mean_of_rows_in_several_parts() -> None:
    table = np.random.default_rng(0).normal(1e6, 1, size=(50, 4))
    found = fed(table[:1])
    moments.add(found, torch.from_numpy(table[1:]))
    np.testing.assert_allclose(moments.mean(found), table.mean(0), rtol=1e-15)


HARD = {
    "plain": lambda table: table,
    "far from zero": lambda table: table + 1e3,
    "scales of eight orders": lambda table: table * np.logspace(-4, 4, table.shape[1]),
    "an outlier": lambda table: np.concatenate([np.full_like(table[:1], 1e5), table]),
    "tiny": lambda table: table * 1e-25,
    "huge": lambda table: table * 1e25,
    "a drift": lambda table: table + np.arange(len(table))[:, None] / 10,
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("samples", "columns", "batch"), [(700, 150, 100), (20_000, 32, 10_000)])
def test_large_float32_tables_preserve_their_spectrum(
    name: str, dtype: torch.dtype, samples: int, columns: int, batch: int
) -> None:
    rng = np.random.default_rng(0)
    table = np.maximum(rng.normal(size=(samples, columns)) @ rng.normal(size=(columns,) * 2), 0)
    rows = torch.from_numpy(HARD[name](table)).to(dtype)
    values = rows.double().numpy()
    found = moments.begin(rows[:100])
    for part in rows.split(batch):
        moments.add(found, part)
    exact = np.cov(values, rowvar=False)
    centered = moments.about(found, moments.mean(found))
    covariance = centered["second"].numpy() / (len(rows) - 1)
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert (abs(covariance - exact) <= 2e-6 * scale).all()
    ratio = [np.trace(x) ** 2 / (x**2).sum() for x in (covariance, exact)]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-6)
    fourth = (((values - values.mean(0)) ** 2).sum(1) ** 2).sum()
    assert float(centered["fourth"]) == pytest.approx(fourth, rel=1e-5)


def test_constant_columns_of_wide_rows_have_no_variance() -> None:
    rows = torch.full((300, 200), 0.1)
    rows[:, 0] = torch.linspace(0, 1, 300)
    found = moments.begin(rows[:70])
    for batch in rows.split(70):
        moments.add(found, batch)
    variance = moments.about(found, moments.mean(found))["second"].diagonal()
    assert variance[0] > 0
    assert (variance[1:] == 0).all()
