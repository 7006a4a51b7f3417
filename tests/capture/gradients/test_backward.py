"""Gradient norms by backward passes, compared with captum, finite differences and torch's Jacobian."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from captum.attr import NeuronGradient
from torch import Tensor, nn

from probekit.capture.gradients.backward import Forward, check_separate, footprint, square_norms
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ModelError

UNITS = {"2": torch.arange(6), "4": torch.tensor([3, 1]), "7": torch.arange(5)}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def reference(network: nn.Module) -> nn.Module:
    """A copy of the network without a recorder's hooks."""
    return copy.deepcopy(network).eval()


@pytest.fixture
def forward(network: nn.Module, reference: nn.Module) -> Iterator[Forward]:
    with Recorder(network.eval(), list(UNITS), grad=True, stop=True) as recorder:

        def run(inputs: Tensor) -> dict[str, Tensor]:
            recorder(inputs)
            return recorder.activations

        yield run


def of_captum(network: nn.Module, layer: str, unit: int, images: Tensor) -> Tensor:
    """Squared norms from captum, one neuron at a time."""
    gradient = NeuronGradient(network, network.get_submodule(layer)).attribute(
        images.clone().requires_grad_(),
        lambda output: output[:, unit].reshape(len(output), -1).mean(1),
    )
    return gradient.detach().flatten(1).double().square().sum(1)


@pytest.mark.parametrize("memory", [1, 20_000, 2**30])
def test_norms_equal_those_of_captum_for_any_chunk_size(
    reference: nn.Module, images: Tensor, forward: Forward, memory: int
) -> None:
    graph, _ = footprint(forward, images[:1])
    found = square_norms(forward, images, UNITS, memory, graph)
    for layer, units in UNITS.items():
        expected = torch.stack([of_captum(reference, layer, int(u), images) for u in units], 1)
        torch.testing.assert_close(found[layer], expected, rtol=1e-5, atol=1e-12)


def test_norms_equal_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 2, stride=2), nn.GELU()
    ).double()
    images = torch.rand(2, 2, 4, 4, dtype=torch.float64)
    step = 1e-5

    def pooled(x: Tensor) -> Tensor:
        return net(x).mean((2, 3))

    differences = []
    for place in torch.eye(32, dtype=torch.float64).view(32, 2, 4, 4):
        with torch.no_grad():
            differences.append(
                (pooled(images + step * place) - pooled(images - step * place)) / (2 * step)
            )
    expected = torch.stack(differences).square().sum(0)
    with torch.no_grad():
        found = square_norms(lambda x: {"y": pooled(x)}, images, {"y": torch.arange(4)}, 2**20, 1)
    torch.testing.assert_close(found["y"], expected, rtol=1e-8, atol=0)


def test_tiny_gradients_do_not_vanish_in_single_precision() -> None:
    scale = 1e-25
    found = square_norms(
        lambda x: {"y": scale * x.flatten(1)[:, :2]},
        torch.rand(3, 1, 2, 2),
        {"y": torch.arange(2)},
        2**20,
        16,
    )["y"]
    torch.testing.assert_close(
        found, torch.full((3, 2), 1e-50, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_the_repeated_batch_stays_within_the_memory_budget(images: Tensor) -> None:
    seen: list[int] = []

    def forward(x: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        return {"y": x.flatten(1)[:, :7]}

    square_norms(forward, images, {"y": torch.arange(7)}, memory=12 * 100, per_row=100)
    assert seen == [10]
    seen.clear()
    square_norms(forward, images, {"y": torch.arange(7)}, memory=3 * 100, per_row=100)
    assert seen == [3, 2]


def test_the_footprint_counts_what_the_graph_stores() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Sigmoid())
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    graph, largest = footprint(lambda x: {"y": net(x)}, torch.rand(1, 1, 16, 16))
    maps = 4 * 8 * 16 * 16
    assert largest == maps
    assert 2 * maps <= graph <= 5 * maps


def test_a_forward_pass_that_refuses_gradients_is_reported(images: Tensor) -> None:
    def forward(x: Tensor) -> dict[str, Tensor]:
        if x.requires_grad:  # as flex_attention does on a CPU
            raise NotImplementedError("this attention does not support backward")
        return {"y": x.mean((2, 3))}

    with pytest.raises(ModelError, match="cannot be differentiated: this attention does not"):
        footprint(forward, images)


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.roll(1, 0)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.BatchNorm2d(1, track_running_stats=False).eval(), "'0' uses the mean and variance"),
        (nn.BatchNorm2d(1).train(), "'0' uses the mean and variance"),
        (Rolled(), "depend on the other samples"),
    ],
)
def test_dependence_between_samples_is_refused(layer: nn.Module, said: str, images: Tensor) -> None:
    net = nn.Sequential(layer, nn.Sigmoid())
    with pytest.raises(ModelError, match=said):
        check_separate(lambda x: {"y": net(x).mean((2, 3))}, images, net)


def test_independent_samples_are_accepted(forward: Forward, images: Tensor) -> None:
    check_separate(forward, images)
    check_separate(forward, images[:2])


def test_layers_that_do_not_depend_on_the_images_are_named(images: Tensor) -> None:
    def forward(x: Tensor) -> dict[str, Tensor]:
        return {"a": x.flatten(1), "b": x.detach().flatten(1)}

    for call in (
        lambda: check_separate(forward, images),
        lambda: square_norms(forward, images, {"b": torch.arange(1)}, 1, 1),
    ):
        with pytest.raises(LayerError, match="'b' does not depend on the images"):
            call()
