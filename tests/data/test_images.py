"""Labeled images from tensors, folders and other data sets, and unreadable images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

import probekit as pk
from probekit.data.batches import Batches
from probekit.data.decoding import ImageDecoder, resize
from probekit.data.folders import FolderImages
from probekit.data.images import TensorImages
from probekit.errors import DataError


def test_folder_is_read_in_order_with_its_classes(folder: Path) -> None:
    data = FolderImages(folder, ImageDecoder((3, 16, 16)))
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0] * 6 + [1] * 6
    image, label = data[7]
    assert image.shape == (3, 16, 16)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert label == 1


@pytest.mark.parametrize(("crop", "size"), [(1.0, 32), (0.875, 32), (0.875, 48)])
def test_preprocessing_equals_that_of_torchvision(crop: float, size: int) -> None:
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    reference = transforms.Compose(
        [
            transforms.Resize(int(size / crop), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
        ]
    )(image)
    found = ImageDecoder((3, size, size), crop, "bicubic").read(image)
    torch.testing.assert_close(found, reference, atol=1e-6, rtol=0)


def test_an_image_of_the_right_size_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = ImageDecoder((3, 8, 8)).read(Image.fromarray(pixels))
    np.testing.assert_allclose(found.numpy().transpose(1, 2, 0) * 255, pixels, atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "I;16", "1"])
def test_images_of_any_mode_are_read(mode: str) -> None:
    for channels in (1, 3):
        assert ImageDecoder((channels, 4, 4)).read(Image.new(mode, (9, 7))).shape == (
            channels,
            4,
            4,
        )


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_an_unreadable_image_is_named_or_skipped(damage: str, folder: Path) -> None:
    bad = folder / "dog" / "04.png"
    content = bad.read_bytes()
    bad.write_bytes(
        {"empty": b"", "text": b"hello", "truncated": content[: len(content) // 2]}[damage]
    )
    with pytest.raises(DataError, match=r"04\.png.*cannot be read.*--skip-bad"):
        list(Batches(FolderImages(folder, ImageDecoder((3, 8, 8))), batch_size=5))
    batches = Batches(FolderImages(folder, ImageDecoder((3, 8, 8)), skip_bad=True), batch_size=5)
    kept = torch.cat([batch.index for batch in batches])
    assert len(kept) == 11
    assert batches.skipped == 1
    paths = FolderImages(folder).paths
    assert paths.index(bad) not in kept.tolist()


def test_skipped_images_are_reported(folder: Path, network: Any) -> None:
    (folder / "dog" / "04.png").write_bytes(b"")
    model = pk.ImageModel(network, (0.5,), (0.5,), (1, 8, 8))
    data = pk.load_data(folder, model, skip_bad=True)
    with pytest.warns(pk.ProbekitWarning, match="1 images of .* could not be read"):
        result = pk.analyze(model, data)
    assert result["samples"].sizes["sample"] == 11


@pytest.mark.parametrize("layout", ["nothing", "empty folders", "no folders", "files only"])
def test_folders_without_images_are_refused(layout: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if layout != "no folders":
        root.mkdir()
    if layout == "empty folders":
        (root / "cat").mkdir()
    if layout == "files only":
        Image.new("L", (3, 3)).save(root / "a.png")
    message = "there is no folder" if layout == "no folders" else "no images in"
    with pytest.raises(DataError, match=message):
        FolderImages(root)


def test_fingerprint_depends_on_the_content(folder: Path) -> None:
    before = FolderImages(folder).fingerprint
    assert FolderImages(folder).fingerprint == before
    Image.new("RGB", (20, 30)).save(folder / "dog" / "04.png")
    assert FolderImages(folder).fingerprint != before
    assert (
        FolderImages(folder, ImageDecoder((3, 8, 8))).fingerprint
        != FolderImages(folder).fingerprint
    )


class Pictures(Dataset[Any]):
    classes = ("a", "b")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.new("RGB", (20, 12), (60 * index, 0, 0)), index % 2


def test_data_sets_of_pil_images_are_fitted_to_the_model() -> None:
    model = pk.ImageModel(torch.nn.Identity(), (0.5,), (0.5,), (3, 8, 8))
    data = pk.load_data(Pictures(), model)
    (batch,) = list(Batches(data, batch_size=4))
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.labels.tolist() == [0, 1, 0, 1]
    assert float(batch.images[2, 0].mean()) == pytest.approx(120 / 255, abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_timm_and_torchvision_data_sets_are_read(folder: Path) -> None:
    from timm.data import ImageDataset
    from torchvision.datasets import ImageFolder

    model = pk.ImageModel(torch.nn.Identity(), (0.5,), (0.5,), (3, 8, 8))
    own = next(iter(Batches(pk.load_data(folder, model), batch_size=12)))
    for other in (ImageFolder(str(folder)), ImageDataset(str(folder))):
        batch = next(iter(Batches(pk.load_data(other, model), batch_size=12)))
        assert batch.labels.sum() == own.labels.sum()
        torch.testing.assert_close(batch.images.mean(), own.images.mean())


def test_sizes_and_channels_are_fitted() -> None:
    images = torch.rand(2, 1, 28, 28)
    assert resize(images, (3, 32, 32)).shape == (2, 3, 32, 32)
    assert torch.equal(resize(images, (1, 28, 28)), images)
    torch.testing.assert_close(resize(images, (3, 28, 28))[:, 2:], images)


def test_bytes_are_scaled_to_the_unit_range() -> None:
    data = TensorImages(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(1))
    assert data[0][0].unique().tolist() == [1.0]


def test_shapes_that_are_not_images_are_refused() -> None:
    with pytest.raises(DataError, match="images must be"):
        TensorImages(torch.zeros(3, 4, 4), torch.zeros(3))


def test_torch_can_load_and_split_the_data() -> None:
    data = TensorImages(torch.rand(6, 1, 4, 4), torch.arange(6), list("abcdef"))
    images, labels = next(iter(DataLoader(data, batch_size=4)))
    assert torch.equal(images, data.images[:4])
    assert labels.tolist() == [0, 1, 2, 3]
    (batch,) = Batches(Subset(data, [5, 1]))
    assert torch.equal(batch.images, data.images[[5, 1]])
    (batch,) = Batches(DataLoader(data, batch_size=6))
    assert torch.equal(batch.images, data.images)


def test_unreadable_items_of_a_map_style_data_set_are_skipped_on_request() -> None:
    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, number: int) -> Any:
            if number in (3, 17):
                raise OSError("broken file")
            return Image.new("L", (2, 2), number), number % 2

    model = pk.ImageModel(
        torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten()), input_size=(1, 2, 2)
    )
    with pytest.raises(DataError, match=r"item 3 .* broken file"):
        pk.record(model, pk.load_data(Broken(), model), "0", batch_size=2)
    data = pk.load_data(Broken(), model, skip_bad=True)
    found = pk.record(model, data, "0", batch_size=2)
    assert found["sample"].values.tolist() == [n for n in range(40) if n not in (3, 17)]
    np.testing.assert_allclose(found["activation"].values[:, 0] * 255, found["sample"], atol=1e-4)
