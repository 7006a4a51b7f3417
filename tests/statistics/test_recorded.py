"""The activations that a statistic stores equal those of the pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from probekit.analysis.analyze import analyze
from probekit.capture.plan import scout_layers
from probekit.capture.record import record
from probekit.errors import DataError, OptionError
from probekit.metrics.metric import FunctionMetric
from probekit.statistics.recorded import Recorded, SampledRows
from probekit.statistics.testing import check_statistic


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def test_stored_activations_equal_a_recording_of_the_layer() -> None:
    model, batch = net(), (torch.rand(30, 1, 8, 8), torch.arange(30) % 3)
    seen = []

    def look(recording):  # type: ignore[no-untyped-def]
        seen.append(recording)
        return recording["activation"].mean("sample")

    metric = FunctionMetric("look", (Recorded(),), look, "unit")
    result = analyze(model, [batch], metrics=metric, progress=False)
    expected = record(model, [batch], progress=False)
    assert seen[0]["activation"].equals(expected["activation"].drop_vars(["layer", "channel"]))
    assert seen[0]["label"].equals(expected["label"])
    assert result["units"]["look"].values == pytest.approx(expected["activation"].mean("sample"))


def test_half_precision_is_returned_in_a_dtype_that_files_support() -> None:
    recorded = Recorded()
    recorded.update(torch.tensor([[1.5, 2.5]], dtype=torch.bfloat16), torch.tensor([3]))
    table = recorded.to_xarray()
    assert table["activation"].dtype == "float32"
    assert table["activation"].values.tolist() == [[1.5, 2.5]]


def test_memory_is_checked_before_and_during_a_pass() -> None:
    layers, _ = scout_layers(net(), torch.rand(2, 1, 8, 8), ["0", "1"])
    for spatial, columns in (("mean", 4), ("positions", 144), ("flatten", 144)):
        needed = 2 * 50 * columns * 4
        Recorded(spatial, memory=needed).check(layers, 50)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"2 layers for 50 samples.*limit"):
            Recorded(spatial, memory=needed - 1).check(layers, 50)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="memory=100 allows 100 bytes"):
        Recorded(memory=100).update(torch.ones(10, 10), torch.zeros(10).long())


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(OptionError, match="spatial must be"):
        Recorded("none")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="one label per row"):
        Recorded().update(torch.ones(2, 2), torch.zeros(3))
    with pytest.raises(DataError, match="no samples"):
        Recorded().to_xarray()


@pytest.mark.parametrize("rows", [3, 24, 100])
def test_satisfies_the_statistic_contract(rows: int) -> None:
    check_statistic(SampledRows(rows))


def test_rows_include_their_samples_and_labels() -> None:
    sampled = SampledRows(rows=10)
    table = torch.arange(200.0).view(100, 2)
    for rows in torch.randperm(100, generator=torch.Generator().manual_seed(0)).split(7):
        sampled.update(table[rows], rows % 3, rows)
    found = sampled.to_xarray()
    index = found["sample"].values
    assert len(index) == 10
    assert (np.diff(index) > 0).all()
    np.testing.assert_array_equal(found["activation"], table[index])
    np.testing.assert_array_equal(found["label"], index % 3)


def test_every_sample_is_equally_likely_to_be_stored() -> None:
    counts = np.zeros(40)
    index = torch.arange(40)
    for seed in range(400):
        sampled = SampledRows(rows=10, seed=seed)
        sampled.update(torch.zeros(40, 1), index, index)
        counts[sampled.to_xarray()["sample"].values] += 1
    assert counts.sum() == 4000
    assert abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_invalid_input_is_refused() -> None:
    with pytest.raises(OptionError, match="rows must be a positive integer"):
        SampledRows(0)
    with pytest.raises(DataError, match="no samples"):
        SampledRows().to_xarray()
    with pytest.raises(DataError, match="indices"):
        SampledRows().update(torch.zeros(2, 1), torch.tensor([0, 1]))
