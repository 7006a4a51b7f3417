"""The private copy gives the same activations and leaves the model unchanged."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from probekit.capture.gradients.private_copy import lend_private, unfused_attention
from probekit.capture.recorder import Recorder
from probekit.models.image_model import ImageModel

IMAGES = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def settled(net: nn.Module) -> nn.Module:
    """Sets batch norm statistics that differ from the initial ones."""
    torch.manual_seed(3)
    for child in net.modules():
        if isinstance(child, _BatchNorm):
            child.running_mean.normal_()  # type: ignore[union-attr]
            child.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(child.weight, 0.5, 2)
            nn.init.normal_(child.bias)
    return net.eval()


def plain() -> nn.Module:
    return settled(
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3)
        )
    )


def forward(model: Any, images: Tensor) -> dict[str, Tensor]:
    return {"y": model(images).flatten(1)}


def test_the_copy_computes_the_same() -> None:
    net = plain()
    for model in (net, ImageModel(net, (0.4, 0.5), (0.2, 0.3), (2, 8, 8))):
        with torch.no_grad(), lend_private(model, IMAGES, forward) as private:
            assert private is not model
            torch.testing.assert_close(private(IMAGES), model(IMAGES))


def test_the_copy_shares_the_memory_of_the_model() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    with lend_private(net, IMAGES, forward) as private:
        assert private[1].weight.data_ptr() == net[1].weight.data_ptr()
        assert not private[1].weight.requires_grad
    assert net[1].weight.requires_grad


def facts(net: nn.Module) -> list[Any]:
    """Everything that must be unchanged afterwards."""
    return [
        [(name, values.clone(), values.stride()) for name, values in net.state_dict().items()],
        [(name, id(values), values.requires_grad) for name, values in net.named_parameters()],
        [(name, id(child), child.training) for name, child in net.named_modules()],
        [len(child._forward_hooks) for child in net.modules()],
    ]


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_restored(hooked: bool, fails: bool) -> None:
    net = plain()
    net[3].bias.requires_grad_(False)
    if hooked:
        net[2].register_forward_hook(lambda module, args, output: output * 2)
    before = facts(net)
    try:
        with lend_private(net, IMAGES, forward) as private:
            assert (private is net) == hooked
            assert not any(values.requires_grad for values in private.parameters())
            if fails:
                raise KeyError
    except KeyError:
        pass
    after = facts(net)
    assert str(before) == str(after)


def test_the_hooks_of_a_recorder_are_not_copied() -> None:
    net = plain()
    with Recorder(net, ["2"]) as recorder:
        net(IMAGES)
        kept = recorder.activations["2"].clone()
        with lend_private(net, IMAGES, forward) as private:
            assert private is not net
            private(IMAGES + 1)
        recorder(IMAGES)
        torch.testing.assert_close(recorder.activations["2"], kept)


class Bound(nn.Module):
    """Stores a bound method of its own, which a copy would call on the original."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.run = self.inner

    def inner(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def test_a_copy_whose_hooks_do_not_fire_is_not_used() -> None:
    net = Bound().eval()

    def recorded(model: Any, images: Tensor) -> dict[str, Tensor]:
        with Recorder(model, ["conv"]) as recorder:
            recorder(images)
        return recorder.activations

    with lend_private(net, IMAGES, recorded) as private:
        assert private is net


def test_attention_is_unfused_and_restored() -> None:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    net[0].fused_attn, net[1].fused_attn = True, False  # type: ignore[assignment]
    fast = torch.backends.mha.get_fastpath_enabled()
    inside = []
    with suppress(KeyError), unfused_attention(net):
        inside = [net[0].fused_attn, torch.backends.mha.get_fastpath_enabled()]
        inside += [torch.backends.cuda.flash_sdp_enabled()]
        raise KeyError
    assert inside == [False, False, False]
    assert (net[0].fused_attn, net[1].fused_attn) == (True, False)
    assert torch.backends.mha.get_fastpath_enabled() == fast
