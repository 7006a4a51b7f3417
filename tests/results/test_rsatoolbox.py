"""Recordings and results as data sets of rsatoolbox."""

from __future__ import annotations

import doctest
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import TensorDataset

import probekit as pk
from probekit.errors import DataError, MissingPackageError

IMAGES = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2] * 4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4), nn.ReLU())


@pytest.fixture
def recording() -> xr.Dataset:
    return pk.record(network(), (IMAGES, LABELS), ["1", "4"], progress=False)


def test_a_recording_gives_one_data_set_per_layer(recording: xr.Dataset) -> None:
    rsatoolbox = pytest.importorskip("rsatoolbox")
    found = pk.to_rsatoolbox(recording)
    assert list(found) == ["1", "4"]
    net = network()
    with torch.no_grad():
        maps = net[1](net[0](IMAGES))
        outputs = net(IMAGES)
    np.testing.assert_allclose(found["1"].measurements, maps.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["4"].measurements, outputs, rtol=1e-5)
    assert found["4"].obs_descriptors["class"] == LABELS.tolist()
    assert found["4"].obs_descriptors["sample"] == list(range(12))
    assert found["1"].channel_descriptors["channel"] == [0, 1, 2, 3, 4]
    # The distances between class means, computed without rsatoolbox.
    distances = rsatoolbox.rdm.calc_rdm(found["4"], descriptor="class").dissimilarities[0]
    means = torch.stack([outputs[label == LABELS].mean(0) for label in range(3)]).double()
    expected = [((means[a] - means[b]) ** 2).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*fewer than 20 samples")
def test_a_result_gives_its_class_means() -> None:
    pytest.importorskip("rsatoolbox")
    data = TensorDataset(IMAGES, LABELS)
    data.classes = ["ant", "bee", "cow"]
    result = pk.analyze(network(), data, ["1"], ["selectivity"])
    (found,) = pk.to_rsatoolbox(result).values()
    units = result["units"].to_dataset()
    assert np.array_equal(found.measurements, units["class_mean"].transpose("class", "unit"))
    assert found.obs_descriptors["class_name"] == units["class_name"].values.tolist()
    assert found.descriptors == {"layer": "1"}


def test_single_elements_keep_their_place() -> None:
    pytest.importorskip("rsatoolbox")
    whole = pk.record(network(), (IMAGES, LABELS), "1", spatial="none", progress=False)
    (found,) = pk.to_rsatoolbox(whole).values()
    assert found.channel_descriptors["y"] == whole["y"].values.tolist()
    assert found.measurements.shape == (12, 20)


def test_values_that_cannot_be_converted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rsatoolbox", None)
        with pytest.raises(MissingPackageError, match=r'pip install "probekit\[rsatoolbox\]"'):
            pk.to_rsatoolbox(xr.Dataset())
    pytest.importorskip("rsatoolbox")
    with pytest.raises(DataError, match=r"takes a recording, or a result .* this has dead"):
        pk.to_rsatoolbox(xr.Dataset({"dead": ("unit", [False])}))
    several = xr.Dataset({"class_mean": (("attribute", "unit", "class"), np.zeros((2, 3, 2)))})
    with pytest.raises(DataError, match=r"choose one with result\.sel"):
        pk.to_rsatoolbox(several)


def test_the_example_runs_where_rsatoolbox_is_installed() -> None:
    pytest.importorskip("rsatoolbox")
    text = str(pk.to_rsatoolbox.__doc__).replace("  # doctest: +SKIP", "")
    names = {"to_rsatoolbox": pk.to_rsatoolbox}
    example = doctest.DocTestParser().get_doctest(text, names, "to_rsatoolbox", None, None)
    found = doctest.DocTestRunner().run(example)
    assert found.attempted == 6
    assert found.failed == 0
