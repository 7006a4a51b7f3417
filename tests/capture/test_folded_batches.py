"""Samples whose views, frames or windows share the batch axis, in any order, and samples in another order.

Expected values are computed from the model's own parts on each view, never with probekit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from probekit.capture.plan import plan, scout_layers
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")

X = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
VIDEOS = torch.randn(5, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """Two convolutions with a forward given as a function of the network and its inputs."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.first, self.second, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(6, 3)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def maps(self, x: Tensor) -> Tensor:
        return self.second(self.two(self.first(self.one(x))))

    def pooled(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))

    def truth(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """The mean over positions and views, in float64."""
        with torch.no_grad():
            first = [torch.relu(self.one(view)) for view in views]
            second = [torch.relu(self.two(maps)) for maps in first]
        return {
            name: torch.stack([maps.double().mean((2, 3)) for maps in every]).mean(0)
            for name, every in (("first", first), ("second", second))
        }


def rows(net: nn.Module, x: Tensor, layers: Any = None) -> dict[str, Tensor]:
    recorded = pk.record(net, (x, torch.arange(len(x))), layers, batch_size=4, progress=False)
    assert recorded["label"].values.tolist() == list(range(len(x)))
    names = recorded["layer"].values
    values = torch.from_numpy(recorded["activation"].values).double()
    return {name: values[:, names == name] for name in dict.fromkeys(names.tolist())}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values.double(), atol=1e-5, rtol=1e-4, msg=name)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :4], x[..., 4:]


def windows(x: Tensor, order: tuple[int, ...]) -> Tensor:
    return x.unflatten(3, (2, 4)).permute(*order).reshape(-1, 3, 8, 4)


FOLDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Tensor], Sequence[Tensor]]]] = {
    "test-time augmentation": (
        lambda net, x: net.head(net.pooled(torch.cat([x, x.flip(-1)]))),
        lambda x: (x, x.flip(-1)),
    ),
    "averaged augmentation": (
        lambda net, x: net.head(net.pooled(torch.cat([x, x.flip(-1), -x]))).view(3, -1, 3).mean(0),
        lambda x: (x, x.flip(-1), -x),
    ),
    "outputs of both views": (
        lambda net, x: net.head(net.pooled(torch.stack([x, x.flip(-1)]).flatten(0, 1))),
        lambda x: (x, x.flip(-1)),
    ),
    "twin towers": (
        lambda net, x: net.head(torch.sub(*net.pooled(torch.cat(halves(x))).chunk(2))),
        halves,
    ),
    "tiles": (
        lambda net, x: net.head(
            torch.cat(net.maps(torch.cat(halves(x))).split(len(x)), -1).mean((2, 3))
        ),
        halves,
    ),
    "windows first": (
        lambda net, x: net.head(net.pooled(windows(x, (3, 0, 1, 2, 4)))).view(2, -1, 3).mean(0),
        halves,
    ),
    "windows last": (
        lambda net, x: net.head(net.pooled(windows(x, (0, 3, 1, 2, 4)))).view(-1, 2, 3).mean(1),
        halves,
    ),
    "windows of augmentations": (
        lambda net, x: net.head(net.pooled(windows(torch.cat([x, -x]), (0, 3, 1, 2, 4)))),
        lambda x: (*halves(x), *halves(-x)),
    ),
    "repeated": (lambda net, x: net.head(net.pooled(x.repeat(2, 1, 1, 1)))[: len(x)], lambda x: [x]),
    "interleaved": (
        lambda net, x: (
            lambda out: net.head(out[0::2] - out[1::2])
        )(net.pooled(torch.stack([x, x.flip(-1)], 1).flatten(0, 1))),
        lambda x: (x, x.flip(-1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_views_in_the_batch_axis_are_averaged_for_their_sample(name: str) -> None:
    run, views = FOLDS[name]
    net = Network(run).eval()
    assert_same(rows(net, X), net.truth(views(X)))
    assert plan(net, X[:2], verify=True)["values"].all()


def test_frames_before_samples_are_averaged_for_their_sample() -> None:
    net = Network(
        lambda net, x: net.head(net.pooled(x.transpose(0, 1).flatten(0, 1))).view(4, -1, 3).mean(0)
    ).eval()
    assert_same(rows(net, VIDEOS), net.truth(VIDEOS.unbind(1)))


def test_augmented_outputs_are_one_batch() -> None:
    """Each view runs alone and only the outputs are concatenated."""
    net = Network(
        lambda net, x: torch.cat([net.head(net.pooled(x)), net.head(net.pooled(x.flip(-1)))])
    ).eval()
    one, other = net.truth([X]), net.truth([X.flip(-1)])
    expected = one | {f"{name}_1": values for name, values in other.items()}
    assert_same(rows(net, X), expected)


def test_a_change_reaches_every_view_of_its_sample() -> None:
    run, _ = FOLDS["test-time augmentation"]
    net = Network(run).eval()
    layers, _ = scout_layers(net, X, ["first"])
    both = torch.cat([X, X.flip(-1)])
    with torch.no_grad():
        maps = torch.relu(net.one(both))
        maps[[2, 2 + len(X)]] = 0
        expected = net.head(torch.relu(net.two(maps)).mean((2, 3)))

    def silence(layer: Any, maps: Tensor) -> Tensor:
        return torch.cat([maps[:2], torch.zeros_like(maps[2:3]), maps[3:]])

    with torch.no_grad(), Recorder(net, layers, change=silence):
        torch.testing.assert_close(net(X), expected)


# Parts of a batch


class Chunked(Network):
    """Runs its second convolution on parts of the batch."""

    def __init__(self, split: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__(lambda net, x: net.chunked(x))
        self.split, self.last = split, nn.ReLU()

    def chunked(self, x: Tensor) -> Tensor:
        parts = [self.second(self.two(part)) for part in self.split(self.first(self.one(x)))]
        return self.head(self.last(torch.cat(parts) - 0.1).mean((2, 3)))


@pytest.mark.parametrize(
    "split", [lambda x: x.chunk(2), lambda x: x.split(1), lambda x: [x[:1], x[1:]]]
)
def test_layers_around_parts_of_a_batch_have_all_rows(
    split: Callable[[Tensor], Sequence[Tensor]],
) -> None:
    net = Chunked(split).eval()
    with torch.no_grad():
        first = torch.relu(net.one(X))
        last = torch.relu(torch.relu(net.two(first)) - 0.1)
    expected = {"first": first.double().mean((2, 3)), "last": last.double().mean((2, 3))}
    assert_same(rows(net, X, ["first", "last"]), expected)
    with pytest.raises(LayerError, match=r"no axis of which is the batch of \d samples"):
        rows(net, X, "second")


def test_parts_in_another_order_are_not_the_batch() -> None:
    net = Chunked(lambda x: x.chunk(2)[::-1]).eval()
    first = torch.relu(net.one(X)).mean((2, 3)).detach()
    assert_same(rows(net, X), {"first": first})


def test_parts_that_the_first_pass_did_not_split_are_refused_later() -> None:
    net = Chunked(lambda x: x.split(3)).eval()
    with pytest.raises(LayerError, match="'second' returned 3 rows for 4 samples"):
        rows(net, X)


# Samples in another order


class Sorted(nn.Module):
    """Runs a layer on samples in an order that depends on the samples or on chance."""

    def __init__(self, order: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(192, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.first, self.inside, self.last = nn.ReLU(), nn.Tanh(), nn.ReLU()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.one(x.flatten(1)))
        order = self.order(x)
        inside = self.inside(self.two(x[order]))
        return self.head(self.last(inside[order.argsort()]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "order",
    [
        lambda x: x.sum(1).argsort(),
        lambda x: torch.randperm(len(x)),
        lambda x: torch.rand(len(x)).argsort(),
        lambda x: torch.arange(len(x) - 1, -1, -1),
    ],
)
def test_a_layer_of_reordered_samples_has_no_rows(
    order: Callable[[Tensor], Tensor], seed: int
) -> None:
    net = Sorted(order).eval()
    x = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with pytest.raises(LayerError, match=r"'inside' \(Tanh\) has the shape .* in their order"):
        rows(net, x, ["first", "inside"])
    expected = {"first": torch.relu(net.one(x.flatten(1))).detach()}
    assert_same(rows(net, x, ["first"]), expected)


def test_an_index_in_order_keeps_the_samples() -> None:
    net = Sorted(lambda x: torch.arange(len(x), device=x.device)).eval()
    with torch.no_grad():
        first = torch.relu(net.one(X.flatten(1)))
        inside = torch.tanh(net.two(first))
    assert_same(rows(net, X, ["first", "inside"]), {"first": first, "inside": inside})


class Experts(nn.Module):
    """A mixture of experts, each of which runs on some of the samples."""

    def __init__(self, like: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.gate, self.head = nn.Linear(192, 6), nn.Linear(6, 2), nn.Linear(6, 3)
        self.first, self.last = nn.ReLU(), nn.Tanh()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(2)
        )  # fmt: skip
        self.like = like

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.one(x.flatten(1)))
        choice = self.gate(x).argmax(1)
        out = torch.zeros_like(x) if self.like else x.new_zeros(len(x), 6)
        for number, expert in enumerate(self.experts):
            out[choice == number] = expert(x[choice == number])
        return self.head(self.last(out))


@pytest.mark.parametrize("like", [False, True])
def test_experts_that_run_on_some_samples_are_left_out(like: bool) -> None:
    net = Experts(like).eval()
    with torch.no_grad():
        first = torch.relu(net.one(X.flatten(1)))
        every = torch.stack([expert(first) for expert in net.experts])
        last = torch.tanh(every[net.gate(first).argmax(1), torch.arange(len(X))])
    assert_same(rows(net, X), {"first": first, "last": last})
    table = plan(net, X)
    assert table.set_index("layer").unit_axis_certain.to_dict() == {"first": True, "last": True}


def test_rows_written_in_another_order_are_refused() -> None:
    net = Experts(True).eval()

    def forward(x: Tensor) -> Tensor:
        x = net.first(net.one(x.flatten(1)))
        out = torch.empty_like(x)
        out[torch.arange(len(x) - 1, -1, -1)] = x
        return net.head(net.last(out).flip(0))

    net.forward = forward  # type: ignore[method-assign]
    with pytest.raises(LayerError, match="change with the order of the samples"):
        rows(net, X, ["first", "last"])


# What has no rows or units


def test_a_comparison_of_samples_has_no_units() -> None:
    net = Network(lambda net, x: net.head(net.pooled(x)) * net.gram(net.pooled(x)).mean()).eval()
    net.act = nn.Sigmoid()
    net.gram = lambda pooled: net.act(pooled @ pooled.T)
    assert list(rows(net, X)) == ["first", "second", "first_1", "second_1"]
    with pytest.raises(LayerError, match=r"'act' \(Sigmoid\) compares the samples of a batch"):
        rows(net, X, "act")


def test_units_in_the_batch_axis_are_refused() -> None:
    """Heads of attention in the batch axis: each index of the last axis has other weights per head."""
    net = nn.Module()
    torch.manual_seed(0)
    net.one, net.act, net.head = nn.Linear(8, 12), nn.GELU(), nn.Linear(4, 2)

    def forward(x: Tensor) -> Tensor:
        x = net.one(x.flatten(1, 2)).unflatten(2, (3, 4)).transpose(1, 2)
        return net.head(net.act(x.flatten(0, 1)).unflatten(0, (-1, 3)).mean((1, 2)))

    net.forward = forward  # type: ignore[method-assign]
    with pytest.raises(LayerError, match="has a part of its units in the batch axis"):
        rows(net, X, "act")


@pytest.mark.parametrize("shape", [(-1,), (-1, 8, 8)], ids=["flat", "maps"])
def test_channels_in_the_batch_axis_are_refused(shape: tuple[int, ...]) -> None:
    """An elementwise function on channels in the batch axis, which have weights of their own."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.second(net.two(net.one(x)).reshape(shape))
        return net.head(x.view(-1, 6, 64).mean(2))

    net = Network(run).eval()
    with pytest.raises(LayerError, match=r"'second' .*has a part of its units in the batch axis"):
        rows(net, X, "second")


def test_weights_that_channels_share_make_units_of_their_own() -> None:
    """As in networks that treat channels as samples."""
    net = Network(
        lambda net, x: net.head(
            net.second(net.each(net.one(x).flatten(0, 1).flatten(1))).view(-1, 5, 6).mean(1)
        )
    ).eval()
    net.each = nn.Linear(64, 6)
    with torch.no_grad():
        expected = net.each(net.one(X).flatten(2)).relu().mean(1)
    assert_same(rows(net, X, "second"), {"second": expected})


def test_a_layer_without_units_is_left_out() -> None:
    net = Network(lambda net, x: net.head(net.pooled(x)) + net.act(x[:, :0]).sum()).eval()
    net.act = nn.ReLU()
    result = pk.analyze(net, (X, torch.arange(7) % 2), progress=False)
    assert result["layers"]["layer"].values.tolist() == ["first", "second"]
    assert "'act' has the shape (2, 0, 8, 8), without units" in result.attrs["notes"]


def test_a_changed_number_of_units_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    with Recorder(net, ["2"]) as recorder, torch.no_grad():
        net(torch.rand(3, 1, 8, 8))
        with pytest.raises(LayerError, match=r"has 196 units .* and had 144 in the first"):
            net(torch.rand(3, 1, 9, 9))
    assert recorder.layers[0].units == 144


class Spiking(nn.Module):
    """Adds its inputs to a potential that it keeps between forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.potential: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = self.potential * 0.5 + x
        return torch.sigmoid(self.potential)


def test_a_model_that_keeps_its_samples_is_refused_and_restored() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), Spiking(), nn.Linear(4, 2)).eval()
    with pytest.raises(ModelError, match="keeps tensors from one forward pass to the next"):
        rows(net, X)
    assert net[2].potential == 0.0
