"""A killed run resumes where it stopped; the folder of another run is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import probekit as pk
from probekit.analysis.robustness.conditions import CLEAN, Condition, ConditionStore
from probekit.analysis.robustness.robustness import robustness
from probekit.errors import OutputError, ProbekitWarning
from probekit.models.image_model import ImageModel

FOG = Condition("corruption", "fog", 3)


KILLED_AT = [10**9]


class Counting(nn.Module):
    """A small classifier that counts the images it has processed and can be killed at one of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 49, 3))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        if self.seen > KILLED_AT[-1]:
            raise KeyboardInterrupt
        logits: Tensor = self.head(self.features(images))
        return logits


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 1, 32, 32, generator=generator), torch.arange(12) % 3


@pytest.fixture(scope="module")
def finished(images: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which refused calls leave unchanged."""
    folder = tmp_path_factory.mktemp("finished")
    run(Counting(), images, folder)
    return folder


def store_in(folder: Path | None) -> ConditionStore:
    """The store of a folder that a call has claimed."""
    store = ConditionStore(folder, lambda: {"seed": 0})
    with store.writing():
        return store


def run(model: Any, images: Any, store: Path | None, **options: Any) -> xr.DataTree:
    given: dict[str, Any] = {"corruptions": ["fog", "contrast"], "severities": (1, 5)}
    return robustness(model, images, **(given | options), store=store, progress=False, batch_size=6)


def equal(one: xr.DataTree, other: xr.DataTree) -> None:
    for name in ("robustness", "units", "layers"):
        xr.testing.assert_equal(one[name].to_dataset(), other[name].to_dataset())


def test_a_killed_run_resumes_and_gives_the_same_numbers(
    counting: Counting, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    whole = run(counting, images, None)
    total, counting.seen = counting.seen, 0
    # The third pass, contrast, is killed. Clean and fog are already stored.
    KILLED_AT.append(total - 10)
    with pytest.raises(KeyboardInterrupt):
        run(counting, images, tmp_path)
    KILLED_AT.pop()
    kept = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob("*.nc"))
    assert kept == ["clean-clean-0", "corruption-fog-1", "corruption-fog-5"]
    counting.seen = 0
    equal(run(counting, images, tmp_path), whole)
    assert counting.seen == total - 2 * 12  # fog is not measured again; clean images are
    scouted = counting.seen = 0
    equal(run(counting, images, tmp_path), whole)
    assert counting.seen - scouted <= 10, "a finished run only looks for the layers"


class WarmedUp(Counting):
    """Has another activation function after some images."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return self.late(logits) if self.seen > 20 else logits


def test_notes_of_stored_conditions_are_those_of_the_result(
    images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    with pytest.warns(ProbekitWarning, match="'late' runs in this forward pass"):
        whole = run(WarmedUp(), images, tmp_path)
    again = run(WarmedUp(), images, tmp_path)  # which finds the layers only, and does not warn
    assert "'late' runs in this forward pass" in again.attrs["notes"]
    assert set(again.attrs["notes"].splitlines()) == set(whole.attrs["notes"].splitlines())


def test_more_severities_and_attacks_reuse_stored_conditions(
    counting: Counting, images: tuple[Tensor, Tensor], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.nc")}
    more = run(counting, images, tmp_path, severities=(1, 3, 5), attacks="fgsm", epsilons=[0.01])
    equal(more, run(counting, images, None, severities=(1, 3, 5), attacks="fgsm", epsilons=[0.01]))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(list(tmp_path.glob("*.nc"))) == len(stamps) + 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"dimensionality": False}, "dimensionality was true and is false"),
        ({"layers": ["head.1"]}, "layers was"),
        ({"limit": 5}, r"data\.limit was null and is 5; data\.samples was 12 and is 5"),
    ],
)
def test_a_folder_with_other_options_is_refused(
    options: dict[str, Any],
    named: str,
    counting: Counting,
    images: tuple[Tensor, Tensor],
    finished: Path,
) -> None:
    with pytest.raises(OutputError, match=named):
        run(counting, images, finished, **options)


def test_a_folder_of_another_model_or_other_data_is_refused(
    counting: Counting, images: tuple[Tensor, Tensor], finished: Path
) -> None:
    with pytest.raises(OutputError, match=r"data\.content differs"):
        run(counting, [(images[0].flip(0), images[1])], finished)
    with pytest.raises(OutputError, match=r"model\.mean was .*; model\.std was"):
        run(ImageModel(counting, (0.5,), (0.5,), (1, 32, 32)), images, finished)
    counting.head[1].weight.data.mul_(2)
    with pytest.raises(OutputError, match=r"model\.hash differs"):
        run(counting, images, finished)


def test_batching_does_not_change_the_identity_of_a_run(
    counting: Counting, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    robustness(counting, images, "fog", 1, batch_size=4, store=tmp_path, progress=False)
    counting.seen = 0
    robustness(counting, images, "fog", 1, batch_size=12, store=tmp_path, progress=False)
    assert counting.seen <= 10  # two images in four passes, to find the layers


def test_a_folder_with_unrelated_content_is_not_modified(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a robustness run and not empty"):
        store_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_identity_is_reported(tmp_path: Path) -> None:
    store_in(tmp_path)
    (tmp_path / "identity.json").write_text("{")
    (tmp_path / "fog.nc").touch()
    with pytest.raises(OutputError, match="is damaged"):
        store_in(tmp_path)


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store[FOG] = xr.DataTree(xr.Dataset({"accuracy": 0.5}))
    (path,) = tmp_path.glob("*.nc")
    path.write_bytes(b"no netCDF")
    again = store_in(tmp_path)
    assert FOG in again
    with pytest.raises(OutputError, match=path.name):
        again[FOG]


def test_conditions_are_distinguished_by_everything_they_depend_on(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store[FOG] = xr.DataTree(xr.Dataset({"accuracy": 0.5}))
    other = Condition("corruption", "fog", 3, "published in elsewhere")
    assert other not in store
    assert CLEAN not in store
    store[other] = xr.DataTree(xr.Dataset({"accuracy": 0.25}))
    again = store_in(tmp_path)
    found = [again[one]["accuracy"].item() for one in (FOG, other)]
    assert found == [0.5, 0.25]
    assert json.loads(again[other].attrs["condition"])["options"] == "published in elsewhere"


def test_without_a_folder_conditions_stay_in_memory() -> None:
    store = store_in(None)
    assert FOG not in store
    store[FOG] = xr.DataTree(xr.Dataset({"accuracy": 0.5}))
    assert np.isclose(store[FOG]["accuracy"], 0.5)


def test_a_file_at_the_path_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "robust").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        store_in(tmp_path / "robust")


def test_the_public_function_accepts_the_store(
    counting: Counting, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    pk.robustness(counting, images, "fog", 1, store=tmp_path / "deep" / "er", progress=False)
    assert (tmp_path / "deep" / "er" / "identity.json").exists()


def test_a_second_writer_is_refused(
    counting: Counting, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "robust"
    with (
        store_in(folder).writing(),
        pytest.raises(OutputError, match="is being written by another process"),
        ConditionStore(folder, lambda: {"seed": 1}).writing(),
    ):
        pass
    assert json.loads((folder / "identity.json").read_text()) == {"seed": 0}
    (folder / "identity.json").unlink()
    robustness(counting, images, "fog", 1, store=folder, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["robust"]
