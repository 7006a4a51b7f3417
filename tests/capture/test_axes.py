"""Unit axes in models whose sizes alone do not determine them.

Expected values are computed in plain Python from the model's own parts, never with probekit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from axis_networks import Chain, Tower, X, record, watched
from probekit.capture import axes
from probekit.capture.plan import plan, scout_layers
from probekit.capture.recorder import Recorder
from probekit.errors import ProbekitWarning


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def strongest(x: Tensor) -> Tensor:
    """The indices of the five tokens of each sample that have the largest norms."""
    return tokens_of(x).norm(dim=2).topk(5, dim=1).indices


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "permute": (lambda x: x.permute(0, 2, 3, 1), 3),
    "permute back": (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 1),
    "transpose": (lambda x: x.flatten(2).transpose(1, 2), 2),
    "flatten": (lambda x: x.flatten(2), 1),
    "movedim": (lambda x: x.movedim(1, -1).contiguous(), 3),
    "einsum": (lambda x: torch.einsum("bchw->bhwc", x), 3),
    "width before units": (lambda x: x.permute(0, 3, 1, 2), 2),
    "pad": (lambda x: F.pad(x, (1, 2, 3, 4)), 1),
    "pad channels": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)), 1),
    "pad channels last": (lambda x: F.pad(x.permute(0, 2, 3, 1), (2, 3)), 3),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 1),
    "crop": (lambda x: x[:, :, 1:-1, :5], 1),
    "crop channels last": (lambda x: x.permute(0, 2, 3, 1)[:, 1:-1, :5], 3),
    "stride": (lambda x: x[:, :, ::2, 1::2], 1),
    "chunk": (lambda x: x.chunk(2, 1)[1], 1),
    "chunk channels last": (lambda x: x.permute(0, 2, 3, 1).chunk(2, -1)[0], 3),
    "gate": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 1),
    "split": (lambda x: x.permute(0, 2, 3, 1).split([2, 6], 3)[1], 3),
    "cat": (lambda x: torch.cat([x, x.relu()], 1), 1),
    "cat space": (lambda x: torch.cat([x, x.relu()], 2), 1),
    "stack": (lambda x: torch.stack([x, -x], 2).flatten(2, 3), 1),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0), 1),
    "bilinear": (lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"), 1),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), 1),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 1),
    "roll": (lambda x: x.permute(0, 2, 3, 1).roll((-2, -2), (1, 2)), 3),
    "flip": (lambda x: x.flip(-1).permute(0, 2, 3, 1), 3),
    "index": (lambda x: x[:, :, torch.tensor([0, 3, 5])], 1),
    "index tokens": (lambda x: tokens_of(x)[torch.arange(len(x))[:, None], strongest(x)], 2),
    "index a token": (
        lambda x: tokens_of(x)[torch.arange(len(x)), strongest(x)[:, 0]][:, None],
        2,
    ),
    "index all": (
        lambda x: tokens_of(x)[
            torch.arange(len(x))[:, None, None], strongest(x)[:, :, None], torch.arange(8)
        ],
        2,
    ),
    "index channels": (lambda x: x[:, torch.tensor([5, 2, 1])], 1),
    "pool": (lambda x: F.max_pool2d(x, 2).permute(0, 2, 3, 1), 3),
    "average": (lambda x: F.adaptive_avg_pool2d(x, 3), 1),
    "softmax over space": (lambda x: x.flatten(2).softmax(2).mT, 2),
    "GLU over channels": (lambda x: F.glu(x, 1), 1),
    "GLU over height": (lambda x: F.glu(x, 2), 1),
    "GLU channels last": (lambda x: F.glu(x.permute(0, 2, 3, 1), -1), 3),
    "addition of a table": (lambda x: x.flatten(2).mT + torch.ones(1, 64, 8), 2),
    "split anew": (
        lambda x: F.pad(x, (2, 2, 2, 2)).reshape(8, 8, 4, 3, 4, 3).transpose(3, 4)
        .reshape(8, 8, 16, 9).reshape(8, 8, 4, 4, 3, 3).transpose(3, 4).reshape(8, 8, 12, 12)
        .reshape(8, 8, 3, 4, 3, 4).permute(0, 2, 4, 3, 5, 1),
        5,
    ),
    "masked": (lambda x: x.masked_fill(torch.eye(8, dtype=torch.bool), 0.0), 1),
    "into a buffer": (lambda x: torch.zeros(8, 8, 8, 8).copy_(x.permute(0, 2, 3, 1)), 3),
    "in place": (lambda x: x.permute(0, 2, 3, 1).contiguous().mul_(2).add_(1), 3),
    "norm by hand": (lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_units_are_followed_through_functions(name: str) -> None:
    function, axis = FUNCTIONS[name]
    net = Chain(function)
    output = net.act(function(net.conv(X))).detach()
    expected = output.movedim(axis, 1).flatten(2).mean(2)
    found = record(net, X, layers=["act"])["act"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("dim", "last", "axis"),
    [(1, False, 1), (-1, False, 1), (2, False, 1), (-1, True, 3), (1, True, 3)],
)
def test_a_glu_has_the_unit_axis_of_its_input(dim: int, last: bool, axis: int) -> None:
    net = Chain(lambda x: x.permute(0, 2, 3, 1) if last else x, nn.GLU(dim))
    output = net.act(net.function(net.conv(X))).detach()
    found = record(net, X, layers=["act"])["act"]
    torch.testing.assert_close(found, output.movedim(axis, 1).flatten(2).mean(2))


class Gated(nn.Module):
    """A channels-last gated block, as in MambaOut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm, self.fc1, self.act = nn.LayerNorm(8), nn.Linear(8, 24), nn.GELU()
        self.conv, self.fc2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        gate, carry, rest = self.fc1(self.norm(x)).split([8, 8, 8], -1)
        rest = self.conv(rest.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.fc2(self.act(gate) * (carry + rest))
        return x.mean((1, 2))


def test_a_gated_block_in_channels_last_has_its_units_last() -> None:
    net = Gated()
    output = watched(net, "act", X)
    torch.testing.assert_close(record(net, X)["act"], output.mean((1, 2)))


class Causal(nn.Module):
    """A causal convolution over time: it pads, and a slice removes the excess."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=4, dilation=2))
        self.act, self.out, self.head = nn.ReLU(), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.out(x + self.act(self.conv(x)[:, :, :-4].contiguous()))[:, :, -1])


@pytest.mark.parametrize("length", [8, 11])
def test_a_causal_convolution_over_time_has_its_units_on_axis_1(length: int) -> None:
    net = Causal().eval()
    x = torch.randn(8, 8, length)
    found = record(net, x)
    assert list(found) == ["act", "out"]
    torch.testing.assert_close(found["act"], watched(net, "act", x).mean(2))
    torch.testing.assert_close(found["out"], watched(net, "out", x).mean(2))


class Mixer(nn.Module):
    """Mixes tokens with an MLP over transposed tokens, then channels."""

    def __init__(self, patches: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 2, 2) if patches else nn.Identity()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.channels = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.after, self.head = nn.Identity(), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x.flatten(2).mT if x.ndim == 4 else x
        x = self.after(x + self.tokens(self.norm1(x).mT).mT)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


@pytest.mark.parametrize("patches", [True, False])
def test_token_mixing_treats_tokens_as_units_only_inside_the_mlp(patches: bool) -> None:
    net = Mixer(patches)
    x = X if patches else torch.randn(16, 16, 16)
    found = record(net, x, layers=["tokens.1", "after", "channels.1"])
    for name in found:
        torch.testing.assert_close(found[name], watched(net, name, x).mean(1), msg=name)


# Windows, heads, uncertainty


class Decoder(nn.Module):
    """Reshapes a vector to a map, so that each of its elements has its own weights."""

    def __init__(self, norm: bool, convolve: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act = nn.Linear(4, 8 * 8 * 8), nn.ReLU()
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.conv = nn.ConvTranspose2d(8, 3, 3) if convolve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.norm(self.fc(x).view(-1, 8, 8, 8))))


@pytest.mark.parametrize(("norm", "convolve"), [(True, True), (True, False), (False, True)])
def test_a_map_made_from_a_vector_has_the_units_of_its_consumer(norm: bool, convolve: bool) -> None:
    net = Decoder(norm, convolve).eval()
    x = torch.randn(8, 4)
    found = record(net, x, layers=["act"])["act"]
    torch.testing.assert_close(found, watched(net, "act", x).mean((2, 3)))


class Groups(nn.Module):
    """Two groups of four filters, which are combined before weights read them."""

    def __init__(self, combine: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.head = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.combine(self.act(self.conv(x).unflatten(1, (2, 4))))).mean((2, 3))


@pytest.mark.parametrize(
    "combine", [lambda x: x.mean(1), lambda x: x.sum(1), lambda x: x[:, 0] - x[:, 1]]
)
def test_units_of_which_weights_read_one_part_are_uncertain(
    combine: Callable[[Tensor], Tensor],
) -> None:
    """They are eight units, or four with two positions each."""
    with pytest.warns(ProbekitWarning, match="axis of act is not certain"):
        table = plan(Groups(combine), X)
    assert table["unit_axis_certain"].tolist() == [False]


def _untraceable(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy().copy())


def test_untraceable_unit_axes_are_determined_with_another_image_size() -> None:
    net = Chain(lambda x: _untraceable(x).permute(0, 2, 3, 1))
    layers, _ = scout_layers(net, X, ["act"])
    assert [(layer.unit_axis, layer.evidence) for layer in layers] == [(3, "image size")]


def test_an_uncertain_unit_axis_is_flagged_and_warns() -> None:
    net = nn.Module()
    torch.manual_seed(0)
    net.embed, net.act, net.head = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)
    net.forward = lambda x: net.head(net.act(_untraceable(net.embed(x))).mean(1))  # type: ignore[method-assign]
    x = torch.rand(3, 6, 4)
    with pytest.warns(ProbekitWarning, match="axis of act is not certain"):
        table = plan(net, x, ["act"])
    assert table["unit_axis_certain"].tolist() == [False]
    with (
        pytest.warns(ProbekitWarning, match="axis of act is not certain"),
        torch.no_grad(),
        Recorder(net, ["act"]) as recorder,
    ):
        net(x)
    assert not recorder.layers[0].certain


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_axes_are_the_same_in_every_gradient_mode(mode: Any) -> None:
    for net, name, axis in (
        (Tower().eval(), "encoder.layers.0.linear1", 0),
        (Gated(), "act", None),
    ):
        output = watched(net, name, X)
        expected = output.mean((1, 2)) if axis is None else output.mean(axis)
        with mode(), Recorder(net, [name]) as recorder:
            net(X)
        torch.testing.assert_close(recorder.activations[name].detach(), expected)


def test_the_mode_that_tracks_operations_is_removed_after_a_failure() -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    def fail(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    net = Chain(fail)
    with pytest.raises(KeyboardInterrupt), Recorder(net, ["act"]):
        net(X)
    assert _get_current_dispatch_mode() is None
    with Recorder(net, ["conv"]):
        with pytest.raises(RuntimeError):
            net(X[:, :2])
        assert _get_current_dispatch_mode() is None


@torch.library.custom_op("probekit_tests::channels_last", mutates_args=())
def channels_last(images: Tensor) -> Tensor:
    """An operator that moves the channels, of which its name and shape show nothing on a cube."""
    return images.permute(0, 2, 3, 1).clone()


class ChannelsLast(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return channels_last(images)


def test_a_custom_operator_is_not_taken_for_elementwise() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), ChannelsLast(), nn.GELU())
    images = torch.rand(2, 3, 8, 8)
    (layer,) = plan(net, images, "2").to_dict("records")
    assert (layer["unit_axis"], layer["evidence"]) == (3, "image size")
    layers, _ = scout_layers(net, images, "2")
    found = record(net, images, layers=layers)["2"]
    torch.testing.assert_close(found, watched(net, "2", images).mean((1, 2)))
    with (
        pytest.warns(ProbekitWarning, match="unit axis of 2 is not certain"),
        torch.no_grad(),
        Recorder(net, "2"),
    ):
        net(images)


def test_weights_that_read_an_axis_of_unknown_origin_mark_no_other() -> None:
    first, second = axes.new_axes(axes.Kind.LOST, (8, 8))
    axes.read(first)
    assert axes.newest(first).read
    assert not axes.newest(second).read
    axes.read(axes.constant(8))
    assert not axes.newest(axes.constant(8)).read


class Graph(nn.Module):
    """A convolution over the nodes of a graph whose fixed adjacency is as large as its features."""

    def __init__(self, how: str, nodes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.register_buffer("adjacency", torch.randn(2, nodes, nodes))
        self.fc, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 1)
        self.split, self.act, self.head = nn.Conv2d(3, 12, 1), nn.ReLU(), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        adjacency = self.adjacency
        if self.how == "before":  # nodes, features
            x, axes = self.act(adjacency[0] @ self.fc(x[:, 0])), (1,)
        elif self.how == "after":  # features, nodes
            x, axes = self.act(torch.einsum("bcv,vw->bcw", self.conv(x[:, 0]), adjacency[0])), (2,)
        else:  # features, time, nodes
            x = self.split(x).unflatten(1, (2, 6))
            x, axes = self.act(torch.einsum("bkctv,kvw->bctw", x, adjacency)), (2, 3)
        return self.head(x.mean(axes))


@pytest.mark.parametrize(("how", "axes"), [("before", (1,)), ("after", (2,)), ("time", (2, 3))])
def test_a_fixed_adjacency_mixes_nodes_and_makes_no_units(how: str, axes: tuple[int, ...]) -> None:
    net, x = Graph(how, 8), torch.randn(4, 3, 8, 8)
    expected = watched(net, "act", x).mean(axes)
    torch.testing.assert_close(record(net, x)["act"], expected)
