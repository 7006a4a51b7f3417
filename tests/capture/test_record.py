"""Recordings in memory and in stores."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import probekit as pk
from probekit.capture import store as store_module
from probekit.data.batches import Batches
from probekit.errors import DataError, OptionError, OutputError
from probekit.results.files import writer_of

Labelled = tuple[Tensor, Tensor]


def by_hand(network: nn.Module, images: Tensor, layer: int) -> Tensor:
    network.eval()
    with torch.no_grad():
        for module in network[: layer + 1]:  # type: ignore[index]
            images = module(images)
    return images


def test_rows_are_samples_and_columns_are_units(network: nn.Module, labeled: Labelled) -> None:
    recording = pk.record(network, labeled, ["2", "4"], batch_size=7)
    assert recording["layer"].values.tolist() == ["2"] * 6 + ["4"] * 4
    assert recording["channel"].values.tolist() == [*range(6), *range(4)]
    assert recording["label"].values.tolist() == labeled[1].tolist()
    for layer in (2, 4):
        expected = by_hand(network, labeled[0], layer).mean((2, 3))
        found = recording["activation"].values[:, recording["layer"].values == str(layer)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_full_maps_have_positions(network: nn.Module, labeled: Labelled) -> None:
    recording = pk.record(network, labeled, ["4", "7"], spatial="none")
    maps = by_hand(network, labeled[0], 4)
    assert recording.sizes["unit"] == 4 * 36 + 5
    for channel, y, x in ((0, 0, 0), (3, 5, 2), (1, 2, 5)):
        where = (
            (recording["layer"].values == "4")
            & (recording["channel"].values == channel)
            & (recording["y"].values == y)
            & (recording["x"].values == x)
        )
        assert where.sum() == 1
        found = recording["activation"].values[:, where][:, 0]
        np.testing.assert_allclose(found, maps[:, channel, y, x], rtol=1e-5, atol=1e-7)
    vector = recording.isel(unit=recording["layer"].values == "7")
    for name in ("y", "x", "token"):
        assert (vector[name].values == -1).all()


def test_tokens_have_token_numbers() -> None:
    import timm

    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2)
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4) % 2
    recording = pk.record(net, (images, labels), ["blocks.0.norm1"], spatial="none")
    assert recording.sizes["unit"] == 5 * 192
    assert recording["token"].values[:6].tolist() == [0, 1, 2, 3, 4, 0]
    patches = pk.record(net, (images, labels), ["blocks.0.norm1"], spatial="none", tokens="patch")
    assert patches.sizes["unit"] == 4 * 192
    whole = recording["activation"].values.reshape(4, 192, 5)
    np.testing.assert_array_equal(patches["activation"].values.reshape(4, 192, 4), whole[:, :, 1:])


@pytest.mark.parametrize("batch", [3, 8, 30])
def test_a_store_holds_the_same_values_as_memory(
    batch: int, network: nn.Module, labeled: Labelled, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(store_module, "_BLOCK_BYTES", 400)
    memory = pk.record(network, labeled, batch_size=batch)
    stored = pk.record(network, labeled, batch_size=batch, store=tmp_path / "a.zarr")
    assert stored["activation"].chunks is not None
    for name in ("activation", "label", "sample", "layer", "channel"):
        np.testing.assert_array_equal(stored[name].values, memory[name].values)
    again = pk.open_recording(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again["activation"].values, memory["activation"].values)


def test_metrics_accept_a_stored_recording(
    network: nn.Module, labeled: Labelled, tmp_path: Path
) -> None:
    stored = pk.record(network, labeled, store=tmp_path / "a.zarr")
    expected = pk.analyze(network, labeled)["units"]["selectivity"]
    found = pk.class_selectivity(stored)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert found["layer"].values.tolist() == expected["layer"].values.tolist()


class Failing(nn.Module):
    """Fails partway through its work."""

    def __init__(self, inner: nn.Module, after: int) -> None:
        super().__init__()
        self.inner, self.left = inner, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("power cut")
        out: Tensor = self.inner(x)
        return out


def test_an_interrupted_recording_resumes(
    network: nn.Module, labeled: Labelled, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(store_module, "_BLOCK_BYTES", 300)
    expected = pk.record(Failing(network, 99), labeled, batch_size=4)
    failing = Failing(network, 8)
    with pytest.raises(RuntimeError, match="power cut"):
        pk.record(failing, labeled, batch_size=4, store=tmp_path / "a.zarr")
    done = json.loads((tmp_path / "a.zarr" / "recording-in-progress.json").read_text())["done"]
    assert 0 < done < 30
    failing.left = 99
    stored = pk.record(failing, labeled, batch_size=4, store=tmp_path / "a.zarr")
    look = 4  # passes that find the layers and compare the samples
    assert failing.left == 99 - look - -(-(30 - done) // 4)
    np.testing.assert_array_equal(stored["activation"].values, expected["activation"].values)
    before = failing.left
    pk.record(failing, labeled, batch_size=4, store=tmp_path / "a.zarr")
    assert failing.left == before - look, "a finished recording is opened, not made again"


def test_a_different_recording_is_not_extended(
    network: nn.Module, labeled: Labelled, tmp_path: Path
) -> None:
    place = tmp_path / "a.zarr"
    pk.record(network, labeled, store=place)
    for change, message in (
        ({"layers": "4"}, "layers was"),
        ({"batch_size": 5}, "data\\."),
        ({"spatial": "none"}, "spatial was"),
    ):
        with pytest.raises(OutputError, match=message):
            pk.record(network, labeled, store=place, **change)
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(OutputError, match="model\\."):
        pk.record(network, labeled, store=place)
    pk.record(network, labeled, store=place, overwrite=True)


def test_invalid_stores_are_refused(network: nn.Module, labeled: Labelled, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data of known length"):
        pk.record(network, iter([labeled]), store=tmp_path / "a.zarr")
    with pytest.raises(OutputError, match=r"\.zarr folder"):
        pk.record(network, labeled, store=tmp_path / "a.h5")
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(OutputError, match="is not a recording that can be resumed"):
        pk.record(network, labeled, store=tmp_path / "b.zarr")
    with pytest.raises(OptionError, match="spatial must be 'mean' or 'none'"):
        pk.record(network, labeled, spatial="all")  # type: ignore[arg-type]


def test_loaders_keep_their_own_batches(
    network: nn.Module, labeled: Labelled, tmp_path: Path
) -> None:
    loader = DataLoader(TensorDataset(*labeled), batch_size=7)
    stored = pk.record(network, loader, store=tmp_path / "a.zarr")
    memory = pk.record(network, loader)
    np.testing.assert_array_equal(stored["activation"].values, memory["activation"].values)


def test_a_recording_of_another_structure_or_other_images_is_not_resumed(
    network: nn.Module, labeled: Labelled, tmp_path: Path
) -> None:
    place = tmp_path / "a.zarr"
    pk.record(network, labeled, layers="4", store=place)
    leaky = nn.Sequential(*network[:4], nn.LeakyReLU(), *network[5:])  # type: ignore[index]
    images = labeled[0].clone()
    images[-1] += 1
    for model, data, words in (
        (leaky, labeled, r"\(model\.modules differs"),
        (
            pk.ImageModel(network, input_size=(1, 8, 8)),
            labeled,
            r"\(model\.mean was",
        ),
        (network, (images, labeled[1]), r"data\.fingerprint"),
        (network, (labeled[0], labeled[1].flip(0)), r"data\.labels"),
    ):
        with pytest.raises(OutputError, match=words):
            pk.record(model, data, layers="4", store=place)


def test_a_second_writer_of_a_recording_is_refused(
    network: nn.Module, labeled: Labelled, tmp_path: Path
) -> None:
    with (
        writer_of(tmp_path / "a.zarr"),
        pytest.raises(OutputError, match=r"a\.zarr' is being written by another process"),
    ):
        pk.record(network, labeled, store=tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
    pk.record(network, labeled, store=tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_loader_that_draws_new_samples_each_time_is_not_stored(
    network: nn.Module, labeled: Labelled, tmp_path: Path
) -> None:
    loader = DataLoader(TensorDataset(*labeled), batch_size=7, shuffle=True, drop_last=True)
    with pytest.raises(DataError, match="draws other samples each time"):
        pk.record(network, loader, store=tmp_path / "a.zarr")
    assert pk.record(network, loader).sizes["sample"] == 28


def test_a_pass_measures_how_long_it_waited_for_images(network: nn.Module) -> None:
    def slow() -> Iterator[Any]:
        for _ in range(3):
            time.sleep(0.1)
            yield torch.rand(2, 1, 8, 8), torch.tensor([0, 1])

    batches = Batches(slow())
    pk.record(network, batches, progress=False)
    assert 0.2 <= batches.waited <= batches.seconds


def test_an_opened_recording_that_was_replaced_is_not_read(
    network: nn.Module, labeled: Labelled, tmp_path: Path
) -> None:
    place = tmp_path / "a.zarr"
    opened = [pk.record(network, labeled, store=place), pk.open_recording(place)]
    values = opened[0]["activation"].values
    other = pk.record(network, (labeled[0] * 2, labeled[1]), store=place, overwrite=True)
    assert not np.allclose(other["activation"].values, values)
    for one in (opened[0].copy(deep=False), opened[1]):
        with pytest.raises(OutputError, match="was replaced or removed after it was opened"):
            one["activation"][3:5].load()
    shutil.rmtree(place)
    with pytest.raises(OutputError, match="was replaced or removed after it was opened"):
        pk.feed(other, pk.ClassMeans())


def test_a_recording_that_does_not_fit_leaves_the_old_one(
    network: nn.Module, labeled: Labelled, tmp_path: Path, monkeypatch: Any
) -> None:
    place = tmp_path / "a.zarr"
    pk.record(network, labeled, store=place)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
        with pytest.raises(OutputError, match="choose fewer layers"):
            pk.record(network, labeled, layers="4", store=place, overwrite=True)
    pk.open_recording(place)
    (tmp_path / "b.zarr").write_text("a file")
    (tmp_path / "c.zarr").symlink_to(place)
    for name in ("b.zarr", "c.zarr"):
        pk.record(network, labeled, layers="4", store=tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "c.zarr"]
    assert pk.open_recording(place)["layer"].values[0] != "4"


@pytest.mark.parametrize("subset", [False, True])
def test_a_file_that_changed_in_the_middle_is_noticed(tmp_path: Path, subset: bool) -> None:
    folder = tmp_path / "images"
    files = [folder / name / f"{at:03}.bmp" for name in "ab" for at in range(90)]
    for at, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), at).save(file)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    model = pk.ImageModel(net, (0.0,), (1.0,), (1, 4, 4))

    def data() -> Any:
        found = pk.load_data(folder, model)
        return Subset(found, range(0, 180, 3)) if subset else found

    fingerprint = pk.load_data(folder, model).fingerprint
    pk.record(model, data(), store=tmp_path / "a.zarr")
    pk.robustness(model, data(), ["contrast"], 1, table=32, store=tmp_path / "b")
    Image.new("L", (4, 4), 255).save(files[33])  # of the same size, and not among those hashed
    assert pk.load_data(folder, model).fingerprint == fingerprint
    with pytest.raises(OutputError, match=r"data\.content differs"):
        pk.record(model, data(), store=tmp_path / "a.zarr")
    with pytest.raises(OutputError, match=r"data\.content differs"):
        pk.robustness(model, data(), ["contrast"], 1, table=32, store=tmp_path / "b")


def test_class_names_of_a_recording_do_not_repeat_its_rows(tmp_path: Path) -> None:
    images, labels = torch.rand(6, 4, 1, 1), torch.tensor([7, 2, 2, 7, 7, 2])
    data = TensorDataset(images, labels)
    data.classes = {2: "bee", 7: "ant"}  # type: ignore[attr-defined]  # as torchvision's data sets do
    names = ["ant", "bee", "bee", "ant", "ant", "bee"]
    network = nn.Sequential(nn.Flatten(), nn.ReLU())
    store = tmp_path / "acts.zarr"
    pk.record(network, data, "1", store=store, batch_size=4, progress=False)
    for found in (pk.record(network, data, "1", progress=False), pk.open_recording(store)):
        assert found["class_name"].values.tolist() == names
        frame = found.to_dataframe()
        assert len(frame) == 6 * 4
        means = frame.groupby(["class_name", "channel"]).activation.mean()
        expected = torch.stack([images[labels == 7].mean(0), images[labels == 2].mean(0)]).flatten()
        np.testing.assert_allclose(means.values, expected, rtol=1e-6)


def test_a_recording_with_one_name_per_class_opens(tmp_path: Path) -> None:
    """Early recordings have this variable instead of the attribute `class_names`."""
    data, store = (torch.rand(4, 3, 1, 1), torch.tensor([1, 0, 1, 1])), tmp_path / "acts.zarr"
    network = nn.Sequential(nn.Flatten(), nn.ReLU())
    pk.record(network, data, "1", store=store, progress=False)
    names = xr.Dataset({"class_name": ("class", np.array(["ant", "bee"], dtype=object))})
    names.to_zarr(store, mode="a", zarr_format=3, consolidated=False)
    found = pk.open_recording(store)
    assert found["class_name"].values.tolist() == ["bee", "ant", "bee", "bee"]
    assert len(found.to_dataframe()) == 4 * 3


def test_a_recording_without_one_of_its_chunks_is_refused(tmp_path: Path) -> None:
    """Chunks of zeros only are written, too, so that a lost one differs."""
    network = nn.Sequential(nn.Flatten(), nn.ReLU())
    images, store = -torch.rand(6, 3, 1, 1), tmp_path / "acts.zarr"
    found = pk.record(network, (images, torch.arange(6) % 2), "1", store=store, progress=False)
    assert found["activation"].values.tolist() == [[0.0] * 3] * 6
    assert found["activation"].dtype == np.float32
    (chunk,) = (one for one in (store / "activation" / "c").rglob("*") if one.is_file())
    chunk.unlink()
    with pytest.raises(OutputError, match="lacks 1 of 1 files of its activations"):
        pk.open_recording(store)


@pytest.mark.parametrize("damage", [lambda x: x[:-5], lambda x: x[:-9] + b"?" + x[-8:]])
@pytest.mark.parametrize("array", ["activation", "label", "layer"])
def test_a_damaged_chunk_is_refused(
    damage: Callable[[bytes], bytes], array: str, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.ReLU())
    images, store = torch.rand(6, 3, 4, 4), tmp_path / "acts.zarr"
    pk.record(network, (images, torch.arange(6) % 2), "1", store=store, progress=False)
    (chunk,) = (one for one in (store / array / "c").rglob("*") if one.is_file())
    chunk.write_bytes(damage(chunk.read_bytes()))
    with pytest.raises(OutputError, match=r"acts.zarr' (cannot be read|is not a recording)"):
        pk.open_recording(store).load()


@pytest.mark.parametrize("scale", [1.0, 1e60, 1e-60])
def test_layers_in_float64_are_recorded_in_float64(scale: float, tmp_path: Path) -> None:
    values = scale * torch.rand(9, 3, dtype=torch.float64)
    data = values, torch.arange(9) % 3
    for store in (None, tmp_path / "acts.zarr"):
        recording = pk.record(nn.Sequential(nn.ReLU()), data, "0", store=store)
        np.testing.assert_array_equal(recording["activation"].values, values)
