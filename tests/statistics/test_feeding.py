"""Statistics of recordings: in memory, lazily from a store, and on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import probekit as pk
from children import FORKS, Child
from probekit.errors import DataError
from probekit.metrics.unit_metrics import (
    class_information,
    class_rank,
    lifetime_sparsity,
    precision_selectivity,
)


@pytest.fixture
def stored(network: nn.Module, labeled: tuple[Tensor, Tensor], tmp_path: Path) -> Path:
    pk.record(network, labeled, batch_size=5, store=tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


@pytest.mark.parametrize("rows", [1, 7, 30, 100])
def test_blocks_do_not_matter(rows: int, stored: Path) -> None:
    recording = pk.open_recording(stored)
    table, labels = recording["activation"].values.astype(np.float64), recording["label"].values
    means = pk.feed(recording, pk.ClassMeans(), rows=rows)
    for label in range(3):
        expected = table[labels == label].mean(0)
        np.testing.assert_allclose(means.sel({"class": label}), expected, rtol=1e-12)
    assert means["layer"].values.tolist() == recording["layer"].values.tolist()
    ratio = pk.participation_ratio(pk.feed(recording, pk.Covariance(), rows=rows))
    values = np.linalg.eigvalsh(np.cov(table.T))
    assert float(ratio) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "a"], "must be integers, not text"),
        ([0.0, 0.5, 1.0], "must be integers, not fractions"),
        ([0, 1, -1], "samples without a label"),
    ],
)
def test_labels_that_are_not_classes_are_refused(labels: list[Any], message: str) -> None:
    recording = xr.Dataset(
        {"activation": (("sample", "unit"), np.eye(3)), "label": ("sample", labels)}
    )
    with pytest.raises(DataError, match=message):
        precision_selectivity(recording, top=2)


@pytest.mark.slow
def test_a_cluster_gives_the_same_statistics(stored: Path, server: Any) -> None:
    dask = pytest.importorskip("dask")
    distributed = pytest.importorskip("distributed")
    recording = pk.open_recording(stored)
    with (
        dask.config.set(FORKS),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        for statistic in (pk.ClassMeans(), pk.Covariance()):
            alone = pk.feed(recording, statistic.fresh(), rows=7)
            for given in (recording, recording.load()):
                together = pk.feed(given, statistic.fresh(), rows=7, client=client)
                if isinstance(alone, xr.DataArray):
                    np.testing.assert_allclose(together, alone, rtol=1e-12)
                else:
                    ratios = [float(pk.participation_ratio(x)) for x in (alone, together)]
                    assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)


MEMORY = """
import resource, sys, probekit as pk
path, samples = sys.argv[1], int(sys.argv[2])
recording = pk.open_recording(path).isel(sample=slice(0, samples))
pk.class_selectivity(recording)
pk.participation_ratio(pk.feed(recording, pk.Covariance()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_recording(
    tmp_path: Path, start: Callable[..., Child]
) -> None:
    units, samples = 64, 200_000
    frame = xr.Dataset(
        {
            "activation": (("sample", "unit"), np.random.default_rng(0).random((samples, units), np.float32)),
            "label": ("sample", np.arange(samples) % 3),
        },
        coords={"layer": ("unit", np.array(["a"] * units, object)), "channel": ("unit", np.arange(units))},
    )  # fmt: skip
    frame.chunk(sample=4096).to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    ends = [start(f"a.zarr {count}", code=MEMORY).wait() for count in (20_000, samples)]
    assert [status for status, _, _ in ends] == [0, 0], ends
    peaks = [float(printed) for _, printed, _ in ends]
    whole = samples * units * 4 / 2**20
    assert peaks[1] - peaks[0] < 0.5 * whole, (peaks, whole)


def test_data_that_is_not_a_recording_is_refused() -> None:
    with pytest.raises(pk.ProbekitError, match=r"activation\(sample, unit\)"):
        pk.feed(xr.Dataset(), pk.ClassMeans())


def test_permuted_labels_are_available_for_a_recording(stored: Path) -> None:
    torch.manual_seed(0)
    metric = pk.SelectivityChance(permutations=20)
    (need,) = [one for one in metric.needs if hasattr(one, "expect")][:1]
    found = pk.feed(pk.open_recording(stored), need.fresh())
    assert found is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "function",
    [pk.eta_squared, pk.preferred_class_auc, class_information, precision_selectivity,
     lifetime_sparsity, class_rank, pk.class_selectivity, pk.selectivity_offset_free],
)  # fmt: skip
def test_activations_that_are_not_finite_are_refused(function: Any, bad: float) -> None:
    values = np.random.default_rng(0).random((12, 2))
    values[7, 1] = bad
    recording = xr.Dataset(
        {"activation": (("sample", "unit"), values), "label": ("sample", np.arange(12) % 3)}
    )
    with pytest.raises(DataError, match="recording contain NaN or infinity"):
        function(recording)
