"""Data sets by name."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Subset

import probekit as pk
from probekit.data.images import TensorImages
from probekit.data.readers import read_idx
from probekit.errors import DataError, OptionError, ProbekitWarning


def test_the_bundled_test_split() -> None:
    data = pk.load_data("fashion-mnist")
    assert len(data) == 10_000
    assert data.labels.bincount().tolist() == [1000] * 10
    image, label = data[0]
    assert image.shape == (1, 28, 28)
    assert data.classes[label] == "Ankle boot"


def test_digits_equal_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data, reference = pk.load_data("digits"), load_digits()
    assert data.labels.tolist() == reference.target.tolist()
    assert (data[5][0][0] * 16).round().tolist() == reference.images[5].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", "is truncated"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x03abc", mtime=0)[:-9], "cannot be read"),
        (b"PK\x03\x04 something else", "is not an IDX file"),
    ],
)
def test_damaged_idx_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "x")


def test_idx_round_trip(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00\x00\x08\x02\x00\x00\x00\x02\x00\x00\x00\x03abcdef")
    assert read_idx(tmp_path / "x").tolist() == [[97, 98, 99], [100, 101, 102]]


def test_data_that_cannot_be_loaded_is_reported() -> None:
    with pytest.raises(DataError, match="close matches: fashion-mnist"):
        pk.load_data("fashion_mnist")
    with pytest.raises(DataError, match="a table or a map-style data set, not int"):
        pk.load_data(3)


def test_a_model_is_evaluated_on_images_not_used_for_training() -> None:
    def trained_on(data: str) -> pk.ImageModel:
        facts = {"recipe": {"data": data}}
        return pk.ImageModel(torch.nn.Flatten(), input_size=(1, 8, 8), provenance=facts)

    assert len(pk.load_data("digits")) == 1797
    assert len(pk.load_data("digits", trained_on("fashion-mnist"))) == 1797
    held_out = pk.load_data("digits", trained_on("digits"))
    assert (len(held_out), held_out.split) == (360, "test")
    assert len(pk.load_data("digits", trained_on("digits"), split="train")) == 1437


def test_options_that_do_not_apply_to_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    items = Subset(pk.load_data("digits"), range(4))
    for source, options in (
        (items, {"root": "x"}), (items, {"workers": 2}), (pk.load_data("digits"), {"skip_bad": True}),
        (tmp_path, {"root": "x"}),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=f"{next(iter(options))}=.* does not apply to"):
            pk.load_data(source, **options)


def test_training_images_are_reported() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model = pk.ImageModel(
        module, input_size=(1, 8, 8), provenance={"recipe": {"data": "digits"}}
    )  # fmt: skip
    for data, split in (
        (pk.load_data("digits"), "all"),
        (pk.load_data("digits", split="train"), "train"),
    ):
        for given in (data, DataLoader(Subset(data, range(60)), 20)):
            with pytest.warns(ProbekitWarning, match=f"trained on images of digits, .* {split!r}"):
                pk.record(model, given, "1", limit=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.record(model, "digits", "1", limit=40)


def test_another_test_split_than_that_of_the_run_is_reported() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    data = pk.load_data("digits", split="test")
    provenance = {"recipe": {"data": "digits"}, "data": f"sha256:0 {data.fingerprint}"}
    model = pk.ImageModel(module, input_size=(1, 8, 8), provenance=provenance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.record(model, "digits", "1", limit=40)
    changed = TensorImages(data.images.flip(0), data.labels, data.classes, "digits")
    changed.split = "test"
    with pytest.warns(ProbekitWarning, match="'test' of digits holds other images than when"):
        pk.record(model, Subset(changed, range(60)), "1", limit=40)
