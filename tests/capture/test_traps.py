"""Known pitfalls of forward hooks: shared memory, gradient modes, memory layouts and precision."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hook_recording import X, conv, record
from probekit.capture.recorder import Recorder


def test_an_in_place_operation_after_the_layer_does_not_change_the_record() -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True))
    found = record(net, ["0"], spatial="none")["0"]
    assert found.min() < 0
    torch.testing.assert_close(found, net[0](X))


def test_an_in_place_operation_on_a_view_of_a_readout_does_not_change_the_record() -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True))
    found = record(net, ["0"], spatial=lambda maps: maps[:, :2])["0"]
    torch.testing.assert_close(found, net[0](X)[:, :2])


@pytest.mark.parametrize("spatial", ["mean", "none", lambda maps: maps[:, 0]])
def test_the_record_has_its_own_memory(spatial: Any) -> None:
    kept: list[Tensor] = []
    net = nn.Sequential(nn.Linear(3, 6), nn.Identity())
    net[1].register_forward_hook(lambda module, args, output: kept.append(output))
    with Recorder(net, ["1"], spatial=spatial) as recorder:
        net(torch.rand(4, 3))
    (found,) = recorder.activations.values()
    assert found.untyped_storage().data_ptr() != kept[0].untyped_storage().data_ptr()


def test_the_record_does_not_keep_the_map_the_batch_or_the_graph_alive() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    seen: list[weakref.ref[Tensor]] = []
    watch = net[1].register_forward_hook(
        lambda module, args, output: seen.append(weakref.ref(output))
    )
    with Recorder(net, ["1"], spatial=lambda maps: maps[:1, :1]) as recorder:
        for _ in range(2):
            batch = torch.rand(4, 3, 8, 8)
            whole = weakref.ref(batch)
            output = net(batch)
            assert recorder.activations["1"].grad_fn is None
            del batch, output
            gc.collect()
            assert whole() is None
            assert all(one() is None for one in seen)
    watch.remove()
    assert recorder.activations["1"].untyped_storage().nbytes() == 8 * 8 * 4


def test_with_gradients_the_record_is_part_of_the_graph() -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Flatten())
    x = X.clone().requires_grad_()
    with Recorder(net, ["0"], grad=True) as recorder:
        net(x)
        (gradient,) = torch.autograd.grad(recorder.activations["0"].sum(), x)
    (expected,) = torch.autograd.grad(net[0](x).mean((2, 3)).sum(), x)
    torch.testing.assert_close(gradient, expected)


# Modes, layouts, precision


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_gradient_mode_gives_the_same_values(mode: Any) -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Flatten())
    with mode(), Recorder(net, ["0", "1"]) as recorder:
        net(X)
        net(X)
        found = recorder.activations
    torch.testing.assert_close(found["0"], net[0](X).mean((2, 3)).detach())
    assert not found["0"].requires_grad


@pytest.mark.parametrize("spatial", ["mean", "none"])
def test_channels_last_memory_gives_the_same_values(spatial: Any) -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    expected = record(net, ["0", "1"], spatial=spatial)
    net = net.to(memory_format=torch.channels_last)
    found = record(net, ["0", "1"], X.to(memory_format=torch.channels_last), spatial=spatial)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_averaged_in_single_precision(dtype: torch.dtype, memory: Any) -> None:
    net = nn.Sequential(nn.Identity(), nn.MaxPool2d(1))
    x = (torch.rand(2, 3, 50, 50) * 60 + 1000).to(dtype).contiguous(memory_format=memory)
    found = record(net, ["1"], x)["1"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double().mean((2, 3)), rtol=1e-5, atol=0)


def test_double_precision_is_preserved() -> None:
    assert record(nn.Sequential(nn.ReLU()), ["0"], X.double())["0"].dtype == torch.float64


def test_a_batch_of_one_is_recorded() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    torch.testing.assert_close(record(net, ["1"], X[:1])["1"], record(net, ["1"])["1"][:1])


class Squeezed(nn.Module):
    """Removes all axes of one element, and thereby the samples of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 6, 8), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x).squeeze()) + 0


def test_a_batch_of_one_without_its_batch_axis_is_recorded_and_changed() -> None:
    net, images = Squeezed(), torch.rand(4, 3, 8, 8)
    expected = torch.tanh(net.conv(images)).flatten(1).detach()
    with torch.no_grad(), Recorder(net, ["act"]) as recorder:
        net(images)
        net(images[:1])
    torch.testing.assert_close(recorder.activations["act"], expected[:1])
    with torch.no_grad(), Recorder(net, ["act"], change=lambda layer, maps: maps * 2) as changing:
        net(images)
        torch.testing.assert_close(net(images[:1]), 2 * expected[0])
    torch.testing.assert_close(changing.activations["act"], 2 * expected[:1])


def test_training_flags_of_every_part_are_unchanged() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout())
    net.train()
    net[1].eval()
    modes = [child.training for child in net.modules()]
    record(net)
    assert [child.training for child in net.modules()] == modes
