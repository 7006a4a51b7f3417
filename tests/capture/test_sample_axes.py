"""Samples on axes other than the first, in lists and in several arguments, and layers without samples.

Expected values are computed in plain Python from the model's own parts, never with probekit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, rnn

from axis_networks import Tower, X, record, watched
from probekit.capture.plan import scout_layers
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ProbekitWarning


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 8, 16])
@pytest.mark.parametrize("grad", [False, True])
def test_the_sample_axis_of_a_transformer_follows_its_model(
    batch_first: bool, samples: int, grad: bool
) -> None:
    net = Tower(batch_first).eval()
    x = torch.randn(samples, 3, 8, 8)
    names = ["encoder.layers.0.self_attn", "encoder.layers.1.activation", "encoder.layers.1"]
    found = record(net, x, layers=names, grad=grad)
    for name in names:
        expected = watched(net, name, x).mean(1 if batch_first else 0)
        torch.testing.assert_close(found[name], expected, msg=name)


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_declared_sample_axis_is_certain_where_the_pass_stops(batch_first: bool) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 4, batch_first=batch_first)

        def forward(self, images: Tensor) -> Tensor:
            rows = images.mean(1) if batch_first else images.mean(1).transpose(0, 1)
            return self.rnn(rows)[0]

    net, x = Rows(), torch.randn(4, 3, 8, 8)
    with Recorder(net, "rnn", stop=True) as recorder:
        recorder(x)
    (layer,) = recorder.layers
    assert (layer.batch_axis, layer.certain, recorder.notes) == (1 - batch_first, True, [])
    expected = net.rnn(x.mean(1) if batch_first else x.mean(1).transpose(0, 1))[0]
    torch.testing.assert_close(recorder.activations["rnn"], expected.mean(1 if batch_first else 0))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_declare_their_sample_axis(
    kind: type[nn.RNNBase], batch_first: bool, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.rnn = kind(8, 4, batch_first=batch_first, bidirectional=bidirectional)
    net.act = nn.Tanh()
    net.head = nn.Linear(8 if bidirectional else 4, 2)
    time = 1 if batch_first else 0

    def forward(x: Tensor) -> Tensor:
        x = x.squeeze(1)
        output = net.act(net.rnn(x if batch_first else x.transpose(0, 1))[0])
        return net.head(output.select(time, -1))

    net.forward = forward  # type: ignore[method-assign]
    x = torch.randn(8, 1, 8, 8)
    found = record(net, x, layers=["rnn", "act"])
    for name in ("rnn", "act"):
        torch.testing.assert_close(found[name], watched(net, name, x).mean(time))


@pytest.mark.parametrize("head", [True, False])
def test_inputs_of_tokens_samples_features_give_one_row_per_sample(head: bool) -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.block = nn.TransformerEncoderLayer(6, 2, 12, activation=nn.GELU())
    net.head = nn.Linear(6, 3) if head else nn.Identity()
    net.forward = lambda x: net.head(net.block(x).mean(0) if head else net.block(x))  # type: ignore[method-assign]
    net.eval()
    x = torch.randn(5, 4, 6)
    found = record(net, x, layers=["block", "block.activation"])
    for name in found:
        torch.testing.assert_close(found[name], watched(net, name, x).mean(0))


def test_packed_sequences_do_not_have_one_row_per_sample() -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.rnn, net.act, net.head = nn.LSTM(6, 4, batch_first=True), nn.Tanh(), nn.Linear(4, 2)

    def forward(x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, [5, 3, 2], batch_first=True)
        _, (last, _) = net.rnn(packed)
        return net.head(net.act(last[-1]))

    net.forward = forward  # type: ignore[method-assign]
    x = torch.randn(3, 5, 6)
    with pytest.raises(LayerError, match="'rnn'"):
        record(net, x, layers=["rnn"])


# Samples in other arguments


class Detector(nn.Module):
    def __init__(self, join: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.head = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(5, 2)
        self.join = join

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        if self.join == "stack":
            x = torch.stack(images)
        elif self.join == "cat":
            x = torch.cat([image[None] for image in images])
        else:
            x = images[0].new_zeros(len(images), 3, 8, 8)
            for image, place in zip(images, x, strict=True):
                place[:, : image.shape[1]].copy_(image)
        return [{"boxes": box} for box in self.head(self.act(self.conv(x)).mean((2, 3)))]


@pytest.mark.parametrize("join", ["stack", "cat", "copy"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 9])
def test_a_list_of_images_is_a_batch(join: str, count: int) -> None:
    net = Detector(join)
    images = [torch.rand(3, 8, 8) for _ in range(count)]
    expected = net.act(net.conv(torch.stack(images))).mean((2, 3)).detach()
    torch.testing.assert_close(record(net, images)["act"], expected)


def test_the_length_of_a_list_may_change() -> None:
    net = Detector("stack")
    with torch.no_grad(), Recorder(net) as recorder:
        for count in (4, 2, 7):
            images = [torch.rand(3, 8, 8) for _ in range(count)]
            net(images)
            expected = net.act(net.conv(torch.stack(images))).mean((2, 3))
            torch.testing.assert_close(recorder.activations["act"], expected)


@pytest.mark.parametrize(
    "scale",
    [torch.tensor(2.0), torch.tensor([2.0]), torch.full((3, 1, 1), 2.0), torch.ones(3, 8, 8)],
    ids=str,
)
def test_an_argument_before_the_images_is_not_taken_for_the_batch(scale: Tensor) -> None:
    net = nn.Module()
    torch.manual_seed(0)
    net.conv, net.act, net.head = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(5, 2)
    net.forward = lambda scale, x: net.head(net.act(net.conv(x * scale)).mean((2, 3)))  # type: ignore[method-assign]
    x = torch.rand(6, 3, 8, 8)
    expected = net.act(net.conv(x * scale)).mean((2, 3)).detach()
    torch.testing.assert_close(record(net, scale, x)["act"], expected)


def test_two_inputs_are_one_batch() -> None:
    net = nn.Module()
    torch.manual_seed(0)
    net.one, net.other, net.act = nn.Linear(4, 5), nn.Linear(3, 5), nn.Tanh()
    net.gate, net.head = nn.Sigmoid(), nn.Linear(5, 2)
    net.forward = lambda a, b: net.head(net.act(net.one(a)) * net.gate(net.other(b)))  # type: ignore[method-assign]
    a, b = torch.rand(6, 4), torch.rand(6, 3)
    found = record(net, a, b)
    torch.testing.assert_close(found["act"], net.one(a).tanh().detach())
    torch.testing.assert_close(found["gate"], net.other(b).sigmoid().detach())


def test_reordered_samples_are_refused() -> None:
    net = nn.Module()
    torch.manual_seed(0)
    net.fc, net.act, net.head = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)
    order = torch.tensor([2, 0, 1])
    net.forward = lambda x: net.head(net.act(net.fc(x[order])))[order.argsort()]  # type: ignore[method-assign]
    with pytest.raises(LayerError, match="no axis of which is the batch"):
        record(net, torch.rand(3, 4)[:, :], layers=["act"])


# Layers that do not depend on the images


class Biased(nn.Module):
    """Adds the output of an MLP over relative positions, whose number equals the number of samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)
        self.register_buffer("table", torch.randn(6, 2))
        self.bias = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias(self.table).mean(0)
        return self.head(self.act(self.conv(x)).mean((2, 3)) + bias)


@pytest.mark.parametrize("samples", [1, 2, 3, 6])
def test_an_mlp_over_positions_is_not_a_layer(samples: int) -> None:
    with pytest.warns(
        ProbekitWarning, match=r"not recorded: bias.1; 'bias.1' does not depend on the images"
    ):
        found = record(Biased(), X[:samples])
    assert list(found) == ["act"]
    with pytest.raises(LayerError, match=r"'bias.1' \(ReLU\) does not depend on the images"):
        record(Biased(), X[:samples], layers=["bias.1"])


def _positive(conv: nn.Module) -> None:
    parametrize.register_parametrization(conv, "weight", nn.Softplus())


@pytest.mark.parametrize(
    "parametrize_it",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        _positive,
    ],
)
@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_parametrizations_are_not_layers(parametrize_it: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    parametrize_it(net[0])
    assert list(record(net, X, layers="*")) == ["0", "1", "2", "3"]


# Consumers of layers whose samples are not on the first axis


def test_readouts_of_all_kinds_have_samples_first() -> None:
    net = Tower().eval()
    x = torch.randn(5, 3, 8, 8)
    name = "encoder.layers.0.linear1"
    output = watched(net, name, x)
    whole = record(net, x, layers=[name], spatial="none")[name]
    torch.testing.assert_close(whole, output.permute(1, 2, 0))


def test_a_change_is_applied_along_the_sample_axis() -> None:
    net = Tower().eval()
    x = torch.randn(5, 3, 8, 8)
    name = "encoder.layers.0.linear1"
    layers, _ = scout_layers(net, x, [name])

    def silence(layer: Any, maps: Tensor) -> Tensor:
        return maps * torch.arange(5.0)[:, None, None]

    by_hand = net.get_submodule(name).register_forward_hook(
        lambda module, args, output: output * torch.arange(5.0)[:, None]
    )
    with torch.no_grad():
        expected = net(x)
    by_hand.remove()
    with torch.no_grad(), Recorder(net, layers, change=silence):
        torch.testing.assert_close(net(x), expected)
