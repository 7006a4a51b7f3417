"""Image models, and temporary use of a module that restores its state."""

from __future__ import annotations

import copy
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from probekit.errors import ModelError, ProbekitWarning
from probekit.models.image_model import as_module, borrow, content_hash


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


class Observer(nn.Module):
    """Changes buffers, attributes and containers in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("highest", torch.zeros(()))
        self.register_buffer("histogram", torch.zeros(0))
        self.ready, self.seen, self.table, self.last = False, [1], {"a": 1}, None

    def forward(self, x: Tensor) -> Tensor:
        self.highest.copy_(torch.maximum(self.highest, x.max()))
        self.histogram.resize_(3).fill_(2)
        self.ready, self.last, self.new = True, x, x
        self.seen.append(2)
        self.table["b"] = 2
        return x


def test_the_state_of_a_borrowed_model_is_restored() -> None:
    net = nn.Sequential(Observer(), nn.BatchNorm1d(4))
    seen, table = net[0].seen, net[0].table
    model = borrow(net)
    model.__enter__()
    net[1].train()
    net(torch.rand(5, 4) + 1)
    with pytest.warns(ProbekitWarning, match="changes its own state.* is restored"):
        model.__exit__(None, None, None)
    observer = net[0]
    assert float(observer.highest) == 0
    assert observer.histogram.shape == (0,)
    assert not observer.ready
    assert observer.last is None
    assert not hasattr(observer, "new")
    assert observer.seen is seen
    assert observer.table is table
    assert (seen, table) == ([1], {"a": 1})
    assert net[1].running_mean.tolist() == [0.0] * 4
    assert int(net[1].num_batches_tracked) == 0


def test_a_model_that_changes_no_tensors_is_left_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net.count = 0

    def forward(x: Tensor) -> Tensor:
        net.count += 1
        return net[0](x)

    net.forward = forward  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with borrow(net):
            net(torch.rand(3, 2))
    assert net.count == 1


class Late(nn.Module):
    """Creates its weights in its first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.fc: nn.Linear | None = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fc is None:
            self.fc = nn.Linear(x.shape[1], 3)
        return self.fc(x)


def test_parts_that_a_model_builds_when_it_runs_are_kept() -> None:
    net, x = Late(), torch.rand(2, 4)
    with borrow(net):
        expected = net(x)
    torch.testing.assert_close(net(x), expected)


class Merging(nn.Linear):
    """Merges a low-rank update into its weights in eval mode."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            self.weight.data += 1 if not mode else -1
            self.merged = not mode
        return super().train(mode)


def test_modules_that_change_with_their_mode_are_restored() -> None:
    net = nn.Sequential(Merging(2, 2), nn.Linear(2, 2))
    net[1].eval()
    before = net[0].weight.detach().clone()
    with borrow(net):
        torch.testing.assert_close(net[0].weight, before + 1)
    torch.testing.assert_close(net[0].weight, before)
    assert [child.training for child in net.modules()] == [True, True, False]


def test_exported_programs_are_measured() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    x = torch.rand(6, 1, 4, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x[:2],), dynamic_shapes=({0: batch},)).module()
    recorded = pk.record(program, (x, torch.arange(6)), progress=False)
    expected = net[0](x).relu().mean((2, 3)).detach()
    torch.testing.assert_close(torch.from_numpy(recorded["activation"].values), expected)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("resnet18", r"load it first, with pk\.load_model\('resnet18'\)"),
        (SimpleNamespace(model=nn.Linear(2, 2)), "give its attribute 'model'"),
        (np.zeros(3), "a name to load, not ndarray$"),
    ],
)
def test_what_is_not_a_model_is_refused_with_advice(given: Any, advice: str) -> None:
    with pytest.raises(ModelError, match=advice):
        as_module(given)
