"""Tokens before the patches of a transformer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hook_recording import record
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, OptionError, ProbekitWarning


class Transformer(nn.Module):
    """A sequence of patch tokens after zero to five other tokens."""

    def __init__(self, prefix: int, convolve: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 4, 4) if convolve else nn.Linear(48, 8)
        if prefix:
            self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        if prefix > 1:
            self.reg_token = nn.Parameter(torch.randn(1, prefix - 1, 8))
        self.norm = nn.LayerNorm(8)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.embed, nn.Linear):
            patches = functional.unfold(x, 4, stride=4).mT
            tokens = self.embed(patches)
        else:
            tokens = self.embed(x).flatten(2).mT
        first = [getattr(self, name) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        tokens = torch.cat([*(one.expand(len(x), -1, -1) for one in first), tokens], 1)
        return self.act(self.norm(tokens)).mean(1)


@pytest.mark.parametrize("convolve", [True, False])
@pytest.mark.parametrize("prefix", range(6))
def test_tokens_before_the_patches_are_included_as_requested(prefix: int, convolve: bool) -> None:
    net = Transformer(prefix, convolve)
    whole = record(net, ["act"], spatial="none")["act"]
    assert whole.shape == (4, 8, prefix + 4)
    torch.testing.assert_close(record(net, ["act"])["act"], whole.mean(2))
    torch.testing.assert_close(
        record(net, ["act"], tokens="patch")["act"], whole[:, :, prefix:].mean(2)
    )
    if prefix:
        found = record(net, ["act"], tokens="class")["act"]
        torch.testing.assert_close(found, whole[:, :, 0])
    else:
        with pytest.raises(OptionError, match="no class token"):
            record(net, ["act"], tokens="class")


@pytest.mark.parametrize("convolve", [True, False])
def test_tokens_are_all_patches_before_the_class_token_is_added(convolve: bool) -> None:
    net = Transformer(2, convolve)
    torch.testing.assert_close(
        record(net, ["embed"], tokens="patch")["embed"], record(net, ["embed"])["embed"]
    )
    with pytest.raises(LayerError, match=r"'embed' .* no class token"):
        record(net, ["embed"], tokens="class")
    with pytest.warns(ProbekitWarning, match="not recorded: embed"):
        assert list(record(net, ["*"], tokens="class")) == ["norm", "act"]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_tiny_patch16_224", 1),
        ("deit_tiny_distilled_patch16_224", 2),
        ("vit_small_patch16_dinov3", 5),
        ("eva02_tiny_patch14_224", 1),
    ],
)
def test_timm_transformers_declare_their_prefix_tokens(name: str, prefix: int) -> None:
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    size = 56 if "14" in name else 64
    net = timm.create_model(name, img_size=size, depth=1).eval()
    with Recorder(net) as recorder:
        net(torch.rand(1, 3, size, size))
    assert {layer.prefix for layer in recorder.layers} == {prefix}
