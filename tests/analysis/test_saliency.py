"""Saliency of units compared with captum and manual computation; the model is restored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import probekit as pk
from probekit.errors import LayerError, OptionError, ProbekitWarning
from probekit.models.image_model import ImageModel

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", ["2", "4", "7"])
@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
def test_saliency_equals_captums_neuron_methods(model: ImageModel, layer: str, method: str) -> None:
    from captum.attr import NeuronGradient, NeuronIntegratedGradients

    found = pk.unit_saliency(model, IMAGES, layer, 1, method=method, steps=20)
    module = copy.deepcopy(model.module).eval()
    for child in module:
        if isinstance(child, nn.ReLU):
            child.inplace = False

    def selected(output: torch.Tensor) -> torch.Tensor:
        return output[:, 1].flatten(1).mean(1) if output.ndim > 2 else output[:, 1]

    whole = ImageModel(module, model.mean, model.std, model.input_size)
    site = module[int(layer)]
    if method == "gradient":
        expected = NeuronGradient(whole, site).attribute(IMAGES.clone().requires_grad_(), selected)
    else:
        expected = NeuronIntegratedGradients(whole, site).attribute(
            IMAGES.clone().requires_grad_(), selected, n_steps=20
        )
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-7)


def test_a_module_names_its_layer(model: ImageModel) -> None:
    images = torch.rand(2, 1, 8, 8)
    by_name = pk.unit_saliency(model, images, "4", 1)
    assert by_name.abs().max() > 0
    assert torch.equal(pk.unit_saliency(model, images, model.module[4], 1), by_name)


def test_saliency_of_a_linear_unit_is_weight_and_weight_times_difference() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    weight = net[1].weight.detach()[2].view(1, 1, 8, 8)
    found = pk.unit_saliency(net, IMAGES, "1", 2, method="gradient")
    torch.testing.assert_close(found, weight.expand_as(IMAGES))
    found = pk.unit_saliency(net, IMAGES, "1", 2, baseline=0.25)
    torch.testing.assert_close(found, weight * (IMAGES - 0.25), rtol=1e-4, atol=1e-6)


def test_integrated_gradients_sum_to_the_difference_in_activation(model: ImageModel) -> None:
    found = pk.unit_saliency(model, IMAGES, "4", 0, steps=200)
    with pk.Recorder(model.module.eval(), ["4"]) as recorder, torch.no_grad():
        model(torch.cat([IMAGES, torch.zeros_like(IMAGES[:1])]))
    activation = recorder.activations["4"][:, 0]
    difference = activation[:5] - activation[5]
    torch.testing.assert_close(found.sum((1, 2, 3)), difference, rtol=0.02, atol=1e-4)


def test_a_later_call_of_a_module_is_a_separate_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.relu(x.flatten(1)[:, :4])
            return self.relu(3 * first)

    for layer, slope in (("relu", 1.0), ("relu_1", 3.0)):
        found = pk.unit_saliency(Twice(), IMAGES, layer, 2, method="gradient")
        assert found.flatten(1)[:, 2].unique().tolist() == [slope]
        assert int((found != 0).sum()) == len(IMAGES)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_restored(model: ImageModel, fails: bool) -> None:
    module = model.module.train()
    module[3].weight.requires_grad_(False)
    module[6].eval()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before = copy.deepcopy(module.state_dict())
    images = IMAGES.clone()
    if fails:
        with pytest.raises(LayerError, match="layer '4' has no unit 99, only units 0 to 3"):
            pk.unit_saliency(model, images, "4", 99)
    else:
        pk.unit_saliency(model, images, "4", 0)
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    assert [child.training for child in module] == [at != 6 for at in range(9)]
    assert [p.requires_grad for p in module[3].parameters()] == [False, True]
    assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
    assert module[3].bias.grad is None
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


@pytest.mark.parametrize(
    ("layer", "options", "error", "words"),
    [
        ("nosuch", {}, LayerError, "no layer"),
        ("4", {"method": "guess"}, OptionError, "method must be"),
        ("4", {"steps": 0}, OptionError, "steps must be"),
        ("4", {"channel": 1.5}, OptionError, "channel must be an integer"),
        ("*", {}, LayerError, r"'\*' is a pattern of names"),
    ],
)
def test_invalid_arguments_are_refused(
    model: ImageModel, layer: str, options: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pk.unit_saliency(model, IMAGES, layer, **{"channel": 0} | options)


def test_images_in_another_precision_than_the_model_are_converted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())
    images = torch.rand(5, 1, 2, 2)
    expected = pk.unit_saliency(net, images, "2", 0)
    found = pk.unit_saliency(net.bfloat16(), images, "2", 0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def _doubled(module: nn.Module, inner: Any, outer: Any) -> Any:
    return tuple(2 * one for one in inner)


@pytest.mark.parametrize("place", [1, 3])
def test_backward_hooks_change_gradients_of_later_layers_only(place: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid())
    images = torch.rand(3, 3, 2, 2)
    wrapped = nn.Sequential(nn.Flatten(), *net)
    rows = images.clone().requires_grad_()
    (plain,) = torch.autograd.grad(net(rows.flatten(1))[:, 2].sum(), rows)
    net[place].register_full_backward_hook(_doubled)
    if place == 1:
        torch.testing.assert_close(_gradient(wrapped, images), 2 * plain)
    else:
        with pytest.warns(
            ProbekitWarning, match=r"backward hooks on 4 do not change the gradients"
        ):
            found = _gradient(wrapped, images)
        torch.testing.assert_close(found, plain)


def _gradient(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return pk.unit_saliency(net, images, "4", 2, method="gradient")


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
def test_a_layer_without_gradient_in_the_images_is_named(method: Any) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, images: torch.Tensor) -> Any:
            return self.act(self.first(images).detach())

    with pytest.raises(LayerError, match="'act' does not depend on the images in a way"):
        pk.unit_saliency(Detached(), torch.rand(2, 3, 6, 6), "act", 0, method=method)
