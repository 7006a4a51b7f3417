"""Files written by an earlier version can be read, and hold the numbers that numpy computes.

`stored/2026-11-26.zip` was written by the version before layers were renamed and identities extended. It
contains an analysis as netCDF and zarr, a recording, and the folder of a robustness run, all for the
network and the images below.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.data import TensorDataset

import probekit as pk
from probekit.capture.store import open_recording
from probekit.errors import OutputError
from probekit.results.folders import check_same
from probekit.results.provenance import facts_of

ARCHIVE = Path(__file__).parent / "stored" / "2026-11-26.zip"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    shutil.unpack_archive(ARCHIVE, folder)
    return folder


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    random = np.random.default_rng(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            values = random.normal(0, 0.2, tuple(parameter.shape)).astype("float32")
            parameter.copy_(torch.from_numpy(values))
    return net


@pytest.fixture(scope="module")
def data(network: nn.Sequential) -> TensorDataset:
    random = np.random.default_rng(0)
    for parameter in network.parameters():
        random.normal(0, 0.2, tuple(parameter.shape))
    images = torch.from_numpy(random.random((12, 1, 8, 8), dtype="float32"))
    return TensorDataset(images, torch.arange(12) % 3)


@pytest.fixture(scope="module")
def activations(network: nn.Sequential, data: TensorDataset) -> Any:
    convolution: Any = network[0]
    with torch.no_grad():
        maps = conv2d(
            data.tensors[0].double(), convolution.weight.double(), convolution.bias.double()
        )
    return maps.numpy().clip(0).mean((2, 3))


@pytest.mark.parametrize("name", ["result.nc", "result.zarr"])
def test_results(name: str, stored: Path, activations: Any) -> None:
    result = pk.open_result(stored / name)
    means = np.stack([activations[label::3].mean(0) for label in range(3)], 1)
    units = result["units"].to_dataset()
    np.testing.assert_allclose(units["class_mean"], means, atol=1e-6)
    rest = (means.sum(1) - means.max(1)) / 2
    index = (means.max(1) - rest) / (means.max(1) + rest + 1e-6)
    np.testing.assert_allclose(units["selectivity"], index, atol=1e-5)
    table = pk.units_table(result)
    preferred = [str(means[unit].argmax()) if means[unit].any() else "none" for unit in range(4)]
    assert table["preferred_class"].fillna("none").tolist() == preferred
    spread = np.linalg.eigvalsh(np.cov(activations.T))
    ratio = pk.layers_table(result)["participation_ratio"].item()
    np.testing.assert_allclose(ratio, spread.sum() ** 2 / (spread**2).sum(), rtol=1e-4)


def test_results_of_both_versions_can_be_merged(
    stored: Path, network: nn.Sequential, data: TensorDataset
) -> None:
    new = pk.analyze(network, data, layers="1", metrics="lifetime_sparsity", progress=False)
    merged = pk.merge_results(stored / "result.nc", new)
    assert {"selectivity", "lifetime_sparsity"} <= set(map(str, merged["units"].data_vars))


def test_a_renamed_option_is_read_by_its_former_name(
    stored: Path, network: nn.Sequential, data: TensorDataset, tmp_path: Path
) -> None:
    result = pk.open_result(stored / "result.nc")
    assert '"centred": true' in result.attrs["provenance"]
    assert facts_of(result.attrs)["metrics"]["dimensionality"]["centered"] is True
    about_zero = pk.Dimensionality(centered=False)
    new = pk.analyze(network, data, layers="1", metrics=about_zero, progress=False)
    with pytest.warns(pk.ProbekitWarning, match="dimensionality.centered was true and is false"):
        pk.merge_results(result, new)
    identity = {"metrics": {"dimensionality": {"centered": False}}}
    file = tmp_path / "survey.json"
    file.write_text(json.dumps(identity).replace("centered", "centred"))
    check_same(file, identity, "survey")
    identity["metrics"]["dimensionality"]["centered"] = True
    with pytest.raises(OutputError, match="centered was false and is true"):
        check_same(file, identity, "survey")


def test_a_stored_covariance_is_read_by_the_former_name_of_its_option() -> None:
    covariance = pk.Covariance(centered=False)
    covariance.update(torch.rand(9, 3), None)
    found = covariance.to_xarray()
    stored = found.rename(centered="centred")
    ratio = pk.participation_ratio_corrected
    assert ratio(stored).item() == ratio(found).item()


def test_stored_recordings_are_read(
    stored: Path, network: nn.Sequential, data: TensorDataset, activations: Any
) -> None:
    recording = open_recording(stored / "recording.zarr")
    np.testing.assert_allclose(recording["activation"], activations, atol=1e-6)
    assert recording["label"].values.tolist() == [0, 1, 2] * 4
    with pytest.raises(OutputError, match=r"data\.content was null"):
        pk.record(network, data, layers="1", store=stored / "recording.zarr", progress=False)


def test_stored_conditions_of_a_robustness_run_are_read(
    stored: Path, network: nn.Sequential, data: TensorDataset
) -> None:
    (clean,) = (stored / "robustness").glob("clean-*.nc")
    found = pk.open_result(clean)
    assert json.loads(found.attrs["condition"])["kind"] == "clean"
    with torch.no_grad():
        right = network(data.tensors[0]).argmax(1) == data.tensors[1]
    np.testing.assert_allclose(found["accuracy"], right.double().mean())
    with pytest.raises(OutputError, match="holds another robustness run: "):
        pk.robustness(
            network, data, "brightness", 1, layers="1", store=stored / "robustness", table=32
        )
