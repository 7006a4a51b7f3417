"""The published data sets are read in their exact layouts, and missing parts are named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from probekit.errors import DataError, OptionError
from probekit.perturbations.corruptions.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS
from probekit.perturbations.corruptions.published import load_published

IMAGES = 4  # of each severity


def write_arrays(root, names=CORRUPTIONS, *, classes=10, side=32):
    rng = np.random.default_rng(0)
    labels = np.tile(rng.permutation(classes)[:IMAGES], 5).astype(np.uint8)
    np.save(root / "labels.npy", labels)
    for name in names:
        shape = (5 * IMAGES, side, side, 3)
        np.save(root / f"{name}.npy", rng.integers(0, 256, shape, dtype=np.uint8))
    return labels


def write_folders(root, names=CORRUPTIONS, *, classes=("n01443537", "n01629819"), group=""):
    rng = np.random.default_rng(0)
    for name in names:
        for severity in range(1, 6):
            for number, wnid in enumerate(classes):
                folder = root / group / name / str(severity) / wnid
                folder.mkdir(parents=True)
                for image in range(2):
                    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"val_{number}{image}.JPEG")


def test_arrays_of_cifar10_c_are_read(tmp_path):
    labels = write_arrays(tmp_path)
    published = load_published(tmp_path)
    assert published.layout == "npy"
    assert published.corruptions == CORRUPTIONS
    assert published.severities == (1, 2, 3, 4, 5)
    for severity in published.severities:
        data = published.dataset("fog", severity)
        start = (severity - 1) * IMAGES
        stored = np.load(tmp_path / "fog.npy")[start : start + IMAGES]
        assert len(data) == IMAGES
        for number, (image, label) in enumerate(data):
            assert image.dtype == torch.float32
            assert image.shape == (3, 32, 32)
            assert np.array_equal((image * 255).round().permute(1, 2, 0).numpy(), stored[number])
            assert label == labels[start + number]


def test_arrays_are_memory_mapped_and_not_pickled(tmp_path):
    write_arrays(tmp_path)
    data = load_published(tmp_path).dataset("snow", 5)
    first = data[0][0]
    assert isinstance(data._images().base, np.memmap)
    assert len(pickle.dumps(data)) < 10_000
    assert torch.equal(pickle.loads(pickle.dumps(data))[0][0], first)
    images, labels = next(iter(DataLoader(data, batch_size=3)))
    assert images.shape == (3, 3, 32, 32)
    assert labels.dtype == torch.int64


def test_classes_are_named_for_cifar10_and_unknown_for_cifar100(tmp_path):
    (tmp_path / "10").mkdir()
    (tmp_path / "100").mkdir()
    write_arrays(tmp_path / "10")
    write_arrays(tmp_path / "100", classes=100)
    assert load_published(tmp_path / "10").dataset("fog", 1).classes[3] == "cat"
    assert load_published(tmp_path / "100").classes is None


@pytest.mark.parametrize("group", ["", "weather"])
def test_folders_of_tiny_imagenet_c_and_grouped_folders_of_imagenet_c_are_read(tmp_path, group):
    write_folders(tmp_path, ["frost", "fog"], group=group)
    published = load_published(tmp_path, corruptions=["fog"])
    assert published.layout == "folders"
    assert published.corruptions == ("frost", "fog")
    data = published.dataset("fog", 2)
    assert data.classes == ("n01443537", "n01629819")
    assert [label for _, label in data] == [0, 0, 1, 1]
    path = tmp_path / group / "fog" / "2" / "n01629819" / "val_11.JPEG"
    expected = np.asarray(Image.open(path))
    assert np.array_equal((data[3][0] * 255).round().permute(1, 2, 0).numpy(), expected)


def test_extra_types_come_after_the_standard_ones(tmp_path):
    write_arrays(tmp_path, CORRUPTIONS + EXTRA_CORRUPTIONS)
    assert load_published(tmp_path).corruptions == CORRUPTIONS + EXTRA_CORRUPTIONS


def test_available_types_can_be_selected(tmp_path):
    write_arrays(tmp_path, ["fog", "spatter"])
    assert load_published(tmp_path, corruptions=None).corruptions == ("fog", "spatter")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: (root / "fog.npy").unlink(), "fog missing"),
        (lambda root: (root / "labels.npy").unlink(), r"labels\.npy is missing"),
        (lambda root: np.save(root / "fog.npy", np.zeros((19, 32, 32, 3), "u1")), "19 images"),
        (lambda root: np.save(root / "fog.npy", np.zeros((20, 32, 32, 3))), "float64"),
        (lambda root: np.save(root / "fog.npy", np.zeros((20, 32, 32), "u1")), "shape"),
        (lambda root: np.save(root / "labels.npy", np.zeros(19, "u1")), "one for each image"),
        (lambda root: (root / "fog.npy").write_bytes(b"no array"), "cannot be read"),
    ],
)
def test_faults_in_arrays_are_named(tmp_path, spoil, told):
    write_arrays(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=told):
        load_published(tmp_path)


def _remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("fog", "fog missing"),
        ("fog/4", "severity 4 missing"),
        ("fog/4/n01629819", "1 classes .* n01629819"),
    ],
)
def test_faults_in_folders_are_named(tmp_path, gone, told):
    write_folders(tmp_path, ["frost", "fog"])
    _remove(tmp_path / gone)
    with pytest.raises(DataError, match=told):
        load_published(tmp_path, corruptions=["frost", "fog"])


def test_a_class_without_images_is_named(tmp_path):
    write_folders(tmp_path, ["fog"])
    for path in (tmp_path / "fog" / "1" / "n01629819").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"n01629819.*no images"):
        load_published(tmp_path, corruptions=None).dataset("fog", 1)


def test_a_broken_image_is_named(tmp_path):
    write_folders(tmp_path, ["fog"])
    (tmp_path / "fog" / "1" / "n01443537" / "val_00.JPEG").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"val_00\.JPEG"):
        load_published(tmp_path, corruptions=None).dataset("fog", 1)[0]


def test_an_unrelated_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no corrupted images"):
        load_published(tmp_path)


def test_missing_types_and_severities_are_refused(tmp_path):
    write_arrays(tmp_path)
    published = load_published(tmp_path)
    with pytest.raises(OptionError, match="close matches: fog"):
        published.dataset("fgo", 1)
    with pytest.raises(OptionError, match="severity must be an integer from 1 to 5, not 6"):
        published.dataset("fog", 6)
