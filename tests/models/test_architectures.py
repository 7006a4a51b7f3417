"""The networks compared with torchvision's, and their layers by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from probekit.models.architectures import ARCHITECTURES, CifarResNet, SmallResNet, SmallVGG

# (name, image channels, image size, classes, activation functions)
NETWORKS = [
    ("resnet8", 1, 8, 10, 7),
    ("resnet20", 3, 32, 10, 19),
    ("resnet32", 1, 28, 10, 31),
    ("resnet44", 3, 32, 10, 43),
    ("resnet56", 3, 32, 100, 55),
    ("vgg16", 3, 32, 10, 14),
    ("vgg16", 1, 28, 10, 14),
    ("resnet18", 3, 64, 200, 17),
    ("resnet18-pool", 3, 64, 200, 17),
    pytest.param("resnet50", 3, 64, 200, 49, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "channels", "size", "classes", "relus"), NETWORKS)
def test_each_nonlinearity_is_a_separate_layer(
    name: str, channels: int, size: int, classes: int, relus: int
) -> None:
    network = ARCHITECTURES[name](classes=classes, channels=channels).eval()
    images = torch.rand(2, channels, size, size)
    with torch.no_grad():
        assert network(images).shape == (2, classes)
    table = pk.plan(network, images)
    assert len(table) == relus == sum(isinstance(m, nn.ReLU) for m in network.modules())
    assert set(table["calls"]) == {1}


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_small_resnet_is_torchvisions_with_or_without_the_max_pool(depth: int, pool: bool) -> None:
    from torchvision.models import get_model

    reference = get_model(f"resnet{depth}", num_classes=7)
    if not pool:
        reference.maxpool = nn.Identity()
    reference.eval()
    ours = SmallResNet(depth, classes=7, pool=pool).eval()
    ours.load_state_dict(reference.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), reference(images))


def test_vgg_is_torchvisions_convolutions_with_a_head_of_512() -> None:
    from torchvision.models import vgg16_bn

    reference = vgg16_bn().features.eval()
    ours = SmallVGG(classes=5).eval()
    convolutions = {
        name: value for name, value in reference.state_dict().items() if value.shape != ()
    }
    own = ours.features.state_dict()
    assert [v.shape for n, v in own.items() if v.shape != ()] == [
        v.shape for n, v in convolutions.items() if not _is_bias_of_convolution(n, reference)
    ]
    with torch.no_grad():
        for child in reference:
            if isinstance(child, nn.Conv2d) and child.bias is not None:
                child.bias.zero_()
    ours.features.load_state_dict(
        {
            n: v
            for n, v in reference.state_dict().items()
            if not _is_bias_of_convolution(n, reference)
        }
    )
    images = torch.rand(2, 3, 32, 32)
    seen: list[Tensor] = []
    ours.hidden.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        ours(images)
        torch.testing.assert_close(seen[0], reference(images).flatten(1))
    assert (ours.hidden.in_features, ours.hidden.out_features) == (512, 512)


def _is_bias_of_convolution(name: str, network: nn.Module) -> bool:
    module, _, last = name.rpartition(".")
    return last == "bias" and isinstance(network.get_submodule(module), nn.Conv2d)


def test_resnet20_has_the_number_of_parameters_in_the_paper() -> None:
    """He et al. 2016, table 6: 0.27 M parameters at depth 20 and 0.85 M at depth 56."""
    counts = {
        depth: sum(parameter.numel() for parameter in CifarResNet(depth).parameters())
        for depth in (20, 56)
    }
    assert {depth: round(count / 1e6, 2) for depth, count in counts.items()} == {20: 0.27, 56: 0.85}


@pytest.mark.parametrize("build", [lambda: CifarResNet(19), lambda: SmallResNet(34)])
def test_an_invalid_depth_is_named(build: object) -> None:
    with pytest.raises(ValueError, match="depth must be"):
        build()  # type: ignore[operator]
