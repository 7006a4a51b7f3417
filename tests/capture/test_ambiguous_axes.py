"""Units, windows and samples on axes that shapes do not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from hook_recording import X, conv, record
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ProbekitWarning


def test_units_last_maps_are_distinguished_from_units_first_maps() -> None:
    class ToLast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    net = nn.Sequential(conv(), ToLast(), nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU())
    with Recorder(net, ["*"]) as recorder:
        net(X)
    assert [layer.unit_axis for layer in recorder.layers] == [1, 3, 3, 3, 3]
    assert [layer.units for layer in recorder.layers] == [6, 6, 6, 5, 5]
    torch.testing.assert_close(recorder.activations["1"], recorder.activations["0"])
    torch.testing.assert_close(recorder.activations["4"], net(X).mean((1, 2)).detach())


def moved(kind: type[nn.Module], to: int, back: int) -> Any:
    """A subclass that moves an axis of its input, runs the forward of torch, and moves it back."""

    class Moved(kind):  # type: ignore[valid-type, misc]
        def forward(self, x: Tensor) -> Tensor:
            given = x.movedim(back, to)
            if isinstance(self, nn.MultiheadAttention):
                return super().forward(given, given, given)[0].movedim(to, back)
            output = super().forward(given)
            return (output[0] if isinstance(output, tuple) else output).movedim(to, back)

    return Moved


MOVED: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "convolution": (moved(nn.Conv2d, 1, -1)(3, 6, 3, padding=1), (2, 8, 8, 3), 3),
    "linear": (moved(nn.Linear, -1, 1)(3, 6), (2, 3, 8, 8), 1),
    "recurrent": (moved(nn.GRU, -1, 1)(3, 6, batch_first=True), (2, 3, 8), 1),
    "batch norm": (moved(nn.BatchNorm1d, 1, -1)(6), (2, 8, 6), 2),
    "layer norm": (moved(nn.LayerNorm, -1, 1)(6), (2, 6, 8, 8), 1),
    "group norm": (moved(nn.GroupNorm, 1, -1)(2, 6), (2, 8, 8, 6), 3),
    "attention": (moved(nn.MultiheadAttention, -1, 1)(6, 2, batch_first=True), (2, 6, 8), 1),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_subclass_may_move_the_units_of_its_type(name: str) -> None:
    module, shape, axis = MOVED[name]
    net = nn.Sequential(module.eval(), nn.ReLU())
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = module(x).detach().movedim(axis, 1).flatten(2).mean(2)
    for layer, values in (("0", expected), ("1", None)):
        with torch.no_grad(), Recorder(net, layer) as recorder:
            net(x)
        (found,) = recorder.layers
        assert (found.unit_axis, found.units, found.certain) == (axis, 6, True)
        if values is not None:
            torch.testing.assert_close(recorder.activations[layer], values)


@pytest.mark.parametrize("by", ["hook", "forward"])
def test_a_hook_or_another_forward_may_move_the_units_of_a_module(by: str) -> None:
    net = nn.Sequential(conv(), nn.ReLU())
    usual = net[0].forward
    expected = usual(X).mean((2, 3)).detach()
    if by == "hook":
        net[0].register_forward_hook(lambda module, args, output: output.permute(0, 2, 3, 1))
    else:
        net[0].forward = lambda x: usual(x).permute(0, 2, 3, 1)
    torch.testing.assert_close(record(net, ["0"])["0"], expected)


def test_a_subclass_whose_operations_cannot_be_followed_is_uncertain() -> None:
    """As a linear layer with a kernel of its own; the axis of its type is the guess."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() @ self.weight.detach().numpy().T)

    net = nn.Sequential(Own(3, 6), nn.ReLU())
    x = torch.rand(4, 5, 7, 3)
    with (
        torch.no_grad(),
        pytest.warns(ProbekitWarning, match="batch or unit axis of 0 is not certain"),
        Recorder(net, "0") as recorder,
    ):
        net(x)
    assert recorder.layers[0].unit_axis == 3


class Colliding(nn.Module):
    """Two layers of the same shape, with units first and then last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.linear(self.relu(self.conv(x)).permute(0, 2, 3, 1))
        return last.flatten(1)


@pytest.mark.parametrize("size", [6, 8])
def test_ambiguous_shapes_are_resolved(size: int) -> None:
    net = Colliding()
    x = torch.rand(2, 3, size, size)
    expected = net.relu(net.conv(x)).mean((2, 3)).detach()
    torch.testing.assert_close(record(net, ["relu"], x)["relu"], expected)
    record(net, ["conv", "linear"])


class Windows(nn.Module):
    """Folds windows into the batch axis, grouped by sample or interleaved."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.together = together
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 3, 5, 1)
        windows = windows.flatten(3, 4).flatten(1, 2)
        if not self.together:
            windows = windows.transpose(0, 1)
        folded: Tensor = self.linear(windows.flatten(0, 1))
        return folded.unflatten(0, (-1, 4)).mean((1, 2))


@pytest.mark.parametrize("together", [True, False])
def test_windows_in_the_batch_axis_are_separated_by_sample(together: bool) -> None:
    net = Windows(together)
    with Recorder(net, ["linear"]) as recorder:
        net(X)
    assert recorder.layers[0].windows == 4
    expected = net.linear(X.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(recorder.activations["linear"], expected.detach())


def test_samples_may_be_on_another_axis() -> None:
    net = nn.Sequential(nn.Linear(3, 5))
    net.forward = lambda x: net[0](x.permute(2, 3, 0, 1).flatten(0, 1))  # type: ignore[method-assign]
    with torch.no_grad(), Recorder(net, ["0"]) as recorder:
        for samples in (4, 3):
            recorder(X[:samples])
            expected = net[0](X[:samples].movedim(1, -1)).mean((1, 2))
            torch.testing.assert_close(recorder.activations["0"], expected)


def test_fewer_rows_than_samples_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 5))
    net.forward = lambda x: net[0](x[:3].movedim(1, -1))  # type: ignore[method-assign]
    with Recorder(net, ["0"]) as recorder:
        recorder(X[:3])
        with pytest.raises(
            LayerError, match="'0' returned 3 rows for 4 samples, and 4 were expected"
        ):
            recorder(X)


class Copies(nn.Module):
    """Copies of units that differ by constants of their own, so that copies may be units or positions."""

    def __init__(self, combine: Callable[[Copies, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 6)
        self.scale = nn.Parameter(torch.randn(4, 6))
        self.shift = nn.Parameter(torch.randn(4, 1))
        self.register_buffer("centers", torch.linspace(-1, 1, 4))
        self.norms = nn.ModuleList([nn.BatchNorm1d(6) for _ in range(4)])
        for i, norm in enumerate(self.norms):
            nn.init.constant_(norm.weight, i)
        self.combine = combine
        self.after = nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        copies = self.combine(self, self.linear(x.flatten(1)))
        return self.relu(self.after(copies)).flatten(1)


COPIES = {
    "scale": lambda net, h: h[:, None] * net.scale,
    "shift": lambda net, h: h[:, None].repeat(1, 4, 1) + net.shift,
    "expand": lambda net, h: h[:, None].expand(-1, 4, -1) * net.scale,
    "outer product": lambda net, h: torch.einsum("bd,ed->bed", h, net.scale),
    "centers": lambda net, h: h[..., None] - net.centers,
    "thresholds": lambda net, h: h[..., None] - torch.linspace(-1, 1, 4),
    "stack": lambda net, h: torch.stack([h * row for row in net.scale], 1),
    "cat": lambda net, h: torch.cat([(h * row)[:, None] for row in net.scale], 1),
    "norms": lambda net, h: torch.stack([norm(h) for norm in net.norms], 1),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_with_constants_of_their_own_are_uncertain(how: str) -> None:
    net = Copies(COPIES[how]).eval()
    with pytest.warns(UserWarning, match="relu is not certain.*constants of their own"):
        table = pk.plan(net, X, layers=["relu"])
    assert not table["unit_axis_certain"].item()
    net.after = nn.Linear(4 if how in ("centers", "thresholds") else 6, 5)
    table = pk.plan(net, X, layers=["relu"])
    assert table["unit_axis_certain"].item()
    assert table["units"].item() == 5


def test_copies_without_constants_of_their_own_are_positions() -> None:
    for combine in (
        lambda net, h: h[:, None].expand(-1, 4, -1) * net.scale[0],
        lambda net, h: torch.stack([h.roll(i, 1) * net.scale[0] for i in range(4)], 1),
        lambda net, h: h.relu()[:, None] + torch.zeros(4, 6),
    ):
        table = pk.plan(Copies(combine), X, layers=["relu"])
        assert table["unit_axis_certain"].item()
        assert table["units"].item() == 6


class TensorTrain(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(12, rank, 5))
        self.second = nn.Parameter(torch.randn(rank, 16, 7))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 12, 16)
        return self.relu(torch.einsum("bij,irp,rjq->bpq", x, self.first, self.second)).flatten(1)


def test_combinations_of_some_of_the_units_are_uncertain() -> None:
    with pytest.warns(UserWarning, match="relu is not certain"):
        table = pk.plan(TensorTrain(2), X)
    assert not table["unit_axis_certain"].item()


@pytest.mark.parametrize("axis", [1, -1])
def test_a_list_of_outputs_of_several_layers_has_units_of_each(axis: int) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.relu = nn.Linear(192, 6), nn.Linear(192, 6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            both = torch.cat([self.one(x).unsqueeze(axis), self.other(x).unsqueeze(axis)], axis)
            return self.relu(both).flatten(1)

    net = Branches()
    found = record(net, ["relu"], X)["relu"]
    torch.testing.assert_close(found.flatten(1), net(X).detach())


def test_outputs_written_into_a_buffer_are_uncertain() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.relu = nn.Linear(192, 6), nn.Linear(192, 6), nn.ReLU()
            self.out = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            both = x.new_zeros(len(x), 2, 6)
            both[:, 0], both[:, 1] = self.one(x.flatten(1)), self.other(x.flatten(1))
            return self.out(self.relu(both).flatten(1))

    with pytest.warns(UserWarning, match="relu is not certain"):
        assert not pk.plan(Written(), X)["unit_axis_certain"].item()
