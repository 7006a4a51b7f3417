"""Published corrupted images replace computed ones, whether or not they match one to one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import probekit as pk
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.models.image_model import ImageModel

SIDE, COUNT = 32, 12
LABELS = np.arange(COUNT) % 3


@pytest.fixture
def color() -> ImageModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 49, 3))
    return ImageModel(net, (0.5,) * 3, (0.5,) * 3, (3, SIDE, SIDE))


@pytest.fixture
def clean() -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (COUNT, 3, SIDE, SIDE), dtype=np.uint8))
    return images, torch.from_numpy(LABELS)


def arrays(root: Path, images: Tensor, names: tuple[str, ...] = ("fog", "snow")) -> None:
    """Files in the layout of CIFAR-10-C, corrupted here."""
    np.save(root / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    for name in names:
        severities = [
            pk.corrupt(images.float() / 255, name, severity, seed=7) for severity in range(1, 6)
        ]
        stored = (torch.cat(severities) * 255).round().to(torch.uint8)
        np.save(root / f"{name}.npy", stored.permute(0, 2, 3, 1).numpy())


def test_images_that_match_one_to_one_give_the_numbers_of_computed_ones(
    color: ImageModel, clean: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    arrays(tmp_path, clean[0])
    published = pk.load_published(tmp_path, corruptions=["fog", "snow"])
    options = {"severities": (1, 4), "progress": False, "batch_size": 5}
    found = pk.robustness(color, clean, published, **options)
    expected = pk.robustness(color, clean, ["snow", "fog"], seed=7, **options)
    assert found["robustness"]["corruption"].values.tolist() == list(published.corruptions)
    for node in ("robustness", "layers", "units"):
        for name, values in expected[node].to_dataset().data_vars.items():
            np.testing.assert_allclose(found[node][name], values, rtol=1e-6, err_msg=str(name))
    assert "corruption_change_participation_ratio" in found["layers"]


def test_stored_numbers_of_other_files_are_not_used(
    color: ImageModel, clean: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    for folder in ("files", "one", "other"):
        (tmp_path / folder).mkdir()

    def measured(store: str) -> np.ndarray:
        published = pk.load_published(tmp_path / "files", corruptions=["fog"])
        found = pk.robustness(color, clean, published, 4, progress=False, store=tmp_path / store)
        return found["units"]["corruption_change_size"].values

    arrays(tmp_path / "files", clean[0], ("fog",))
    before = measured("one")
    np.testing.assert_array_equal(measured("one"), before)
    assert len(list((tmp_path / "one").glob("corruption-*.nc"))) == 1
    arrays(tmp_path / "files", 255 - clean[0], ("fog",))
    after = measured("one")
    np.testing.assert_array_equal(after, measured("other"))
    assert not np.allclose(after, before)


def test_a_random_sample_of_the_data_selects_the_same_images_of_the_files(
    color: ImageModel, clean: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    arrays(tmp_path, clean[0])
    published = pk.load_published(tmp_path, corruptions=["fog"])
    found = pk.robustness(color, clean, published, 2, limit=6, seed=7, progress=False)
    expected = pk.robustness(color, clean, ["snow", "fog"], 2, limit=6, seed=7, progress=False)
    np.testing.assert_allclose(
        found["units"]["corruption_change_size"].sel(corruption="fog"),
        expected["units"]["corruption_change_size"].sel(corruption="fog"),
        rtol=1e-6,
    )


def test_files_of_unmatched_images_give_accuracy_only(
    color: ImageModel, clean: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    arrays(tmp_path, clean[0])
    published = pk.load_published(tmp_path, corruptions=["fog"])
    part = (clean[0][:7], clean[1][:7])
    with pytest.warns(ProbekitWarning, match="images are not those of the data"):
        found = pk.robustness(color, part, published, (1, 2), progress=False)
    images = published.dataset("fog", 2)
    batch = torch.stack([images[number][0] for number in range(COUNT)])
    right = (color(batch).argmax(1) == clean[1]).double().mean()
    accuracy = found["robustness"]["accuracy"].sel(corruption="fog", severity=2)
    assert accuracy == pytest.approx(right.item())
    assert "corruption_change_participation_ratio" not in found["layers"]
    assert "corruption_change_size" not in found["units"]
    assert "corruption_selectivity" in found["units"]


def test_a_stream_with_other_labels_is_refused(
    color: ImageModel, clean: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    class Stream:
        def __iter__(self) -> object:
            return iter([(clean[0] / 255, clean[1].flip(0))])

    arrays(tmp_path, clean[0])
    published = pk.load_published(tmp_path, corruptions=["fog"])
    with pytest.raises(DataError, match="images are not the same"):
        pk.robustness(color, Stream(), published, 1, progress=False)


def test_folders_are_evaluated_as_separate_data(
    color: ImageModel, clean: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (5, 3, 2, 64, 64, 3), dtype=np.uint8)
    names = [f"n{number}" for number in range(3)]
    for severity in range(1, 6):
        for label, wnid in enumerate(names):
            folder = tmp_path / "fog" / str(severity) / wnid
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(pixels[severity - 1, label, number]).save(folder / f"{number}.png")
    published = pk.load_published(tmp_path, corruptions=["fog"])
    named = dataclasses.replace(color, classes=tuple(names))
    found = pk.robustness(named, clean, published, 3, progress=False)
    batch = torch.from_numpy(pixels[2].reshape(6, 64, 64, 3)).permute(0, 3, 1, 2).float() / 255
    small = nn.functional.interpolate(batch, (SIDE, SIDE), mode="bilinear", antialias=True)
    right = (color(small).argmax(1) == torch.arange(3).repeat_interleave(2)).double().mean()
    assert found["robustness"]["accuracy"].item() == pytest.approx(right.item())
    assert "corruption_change_size" not in found["units"]


class Brightness(nn.Module):
    """Classifies images by their brightness: 0, 100 or 200 of 255."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        place = (self.act(images).mean((1, 2, 3)) * 2.55).round().long()
        return nn.functional.one_hot(place, 3).float()


def test_classes_of_folders_are_matched_by_name(tmp_path: Path) -> None:
    names = ("n3", "n1", "n2")  # from dark to bright
    for severity in range(1, 6):
        for place, name in enumerate(names):
            (tmp_path / "fog" / str(severity) / name).mkdir(parents=True)
            image = Image.new("RGB", (SIDE, SIDE), (100 * place,) * 3)
            image.save(tmp_path / "fog" / str(severity) / name / "0.png")
    published = pk.load_published(tmp_path, corruptions=["fog"])
    model = ImageModel(Brightness(), (0.0,) * 3, (1.0,) * 3, (3, SIDE, SIDE), names)
    labels = torch.arange(9) % 3
    images = (labels[:, None, None, None] * 100 / 255).expand(9, 3, SIDE, SIDE)
    options = {"severities": 1, "layers": "act", "progress": False}
    assert (
        pk.robustness(model, (images, labels), published, **options)["robustness"]["accuracy"] == 1
    )
    unnamed = dataclasses.replace(model, classes=())
    with pytest.warns(ProbekitWarning, match="accuracy under corruption is a guess"):
        pk.robustness(unnamed, (images, labels), published, **options)


def test_files_of_other_classes_are_refused(
    clean: tuple[Tensor, Tensor], color: ImageModel, tmp_path: Path
) -> None:
    arrays(tmp_path, clean[0])
    published = pk.load_published(tmp_path, corruptions=["fog"])
    model = ImageModel(color.module, (0.5,), (0.5,), (3, SIDE, SIDE), ("a", "b", "c"))
    with pytest.raises(DataError, match="the model has 3 classes"):
        pk.robustness(model, clean, published, 1, progress=False)


def test_a_severity_that_does_not_exist_is_refused(
    clean: tuple[Tensor, Tensor], color: ImageModel, tmp_path: Path
) -> None:
    arrays(tmp_path, clean[0])
    published = pk.load_published(tmp_path, corruptions=["fog"])
    with pytest.raises(OptionError, match="severity must be an integer from 1 to 5, not 0"):
        pk.robustness(color, clean, published, 0, progress=False)
