"""Image models, and temporary use of a module that restores its state."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import probekit as pk
from probekit.errors import ModelError
from probekit.models.image_model import borrow, content_hash


def test_each_channel_is_normalized() -> None:
    model = pk.ImageModel(nn.Identity(), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0), (3, 4, 4))
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    expected = (images.numpy() - [[[0.1]], [[0.2]], [[0.3]]]) / [[[0.5]], [[1.0]], [[2.0]]]
    torch.testing.assert_close(model(images), torch.from_numpy(expected))


def test_gradients_reach_the_image() -> None:
    model = pk.ImageModel(nn.Flatten(), (0.0,), (0.25,), (1, 2, 2))
    images = torch.rand(1, 1, 2, 2, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None
    assert images.grad.unique().tolist() == [4.0]


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.0,)), ((0.5, 0.5), (1.0,)), ((0.5,), (-1.0,))]
)
def test_invalid_normalization_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ModelError, match="one positive std per channel"):
        pk.ImageModel(nn.Identity(), mean, std)


def test_borrowed_modules_are_restored_after_an_exception() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    net.train()
    net[1].eval()

    def fail() -> None:
        with borrow(net):
            assert not any(child.training for child in net.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [child.training for child in net.modules()] == [True, True, False, True]


@pytest.mark.parametrize("device", ["meta", "quantum", "cuda:99"])
def test_an_unavailable_device_is_refused(device: str) -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=f"device '{device}'"), borrow(net, device):
        raise AssertionError("lent to a device that cannot be used")
    assert net.weight.device.type == "cpu"
    assert net.training


def test_the_hash_depends_on_every_bit() -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.load_state_dict(net.state_dict())
    assert content_hash(net) == content_hash(other)
    with torch.no_grad():
        other.bias[1] = torch.nextafter(other.bias[1], torch.tensor(9.0))
    assert content_hash(net) != content_hash(other)
    assert content_hash(nn.Linear(3, 3).bfloat16()).startswith("sha256:")


def test_the_repr_is_one_line() -> None:
    model = pk.ImageModel(nn.Linear(2, 2), classes=tuple("abc"), provenance={"name": "resnet18"})
    assert len(repr(model)) < 150
    assert "resnet18" in repr(model)
    assert "3 classes" in repr(model)


@pytest.mark.parametrize("size", [(1, 0, 4), (4, 4), (1, 2**20, 2**20), (-1, -4, 4)])
def test_invalid_sizes_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="input_size"):
        pk.ImageModel(nn.Identity(), input_size=size)  # type: ignore[arg-type]


def test_one_number_normalizes_every_channel() -> None:
    model = pk.ImageModel(nn.Identity(), mean=0.5, std=np.array([0.25]))  # type: ignore[arg-type]
    assert (model.mean, model.std) == ((0.5,), (0.25,))


def test_a_missing_attribute_of_the_module_is_named() -> None:
    model = pk.ImageModel(nn.Linear(2, 2))
    with pytest.raises(
        AttributeError, match=r"has no attribute 'eval'; its module has: use \.module\.eval"
    ):
        model.eval()  # type: ignore[attr-defined]
    assert not hasattr(model, "frobnicate")
    assert copy.deepcopy(model).mean == pickle.loads(pickle.dumps(model)).mean == (0.0,)
