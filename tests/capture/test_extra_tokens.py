"""Class and register tokens around the patches of signals, images and videos."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from axis_networks import record, watched
from probekit.errors import LayerError, OptionError


class Tokens(nn.Module):
    """Class and register tokens around the patches of a signal, an image or a video."""

    def __init__(self, dims: int, before: dict[str, int], after: dict[str, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.embed = conv(3, 6, 2, 2)
        for name, count in (before | after).items():
            self.register_parameter(name, nn.Parameter(torch.randn(1, count, 6)))
        self.before, self.after = list(before), list(after)
        self.fc, self.act, self.head = nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).mT
        first = [getattr(self, name).expand(len(x), -1, -1) for name in self.before]
        last = [getattr(self, name).expand(len(x), -1, -1) for name in self.after]
        tokens = torch.cat([*first, tokens, *last], 1)
        return self.head(self.act(tokens + self.fc(tokens)).mean(1))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ({"cls_token": 1}, {}, 0),
        ({"summary": 1}, {}, 0),
        ({"cls_tokens": 3}, {}, 0),
        ({"cls_token": 1, "dist_token": 1}, {}, 0),
        ({"reg_token": 4, "cls_token": 1}, {}, 4),
        ({"cls_token": 1}, {"register_tokens": 2}, 0),
        ({}, {"cls_token": 1}, -1),
    ],
)
def test_extra_tokens_are_distinguished_from_patches(
    dims: int, before: dict[str, int], after: dict[str, int], place: int
) -> None:
    net = Tokens(dims, before, after)
    x = torch.randn(4, 3, *(4,) * dims)
    output = watched(net, "act", x)
    start, stop = sum(before.values()), output.shape[1] - sum(after.values())
    found = record(net, x, tokens="patch")["act"]
    torch.testing.assert_close(found, output[:, start:stop].mean(1))
    torch.testing.assert_close(record(net, x, tokens="class")["act"], output[:, place])


@pytest.mark.parametrize("before", [{}, {"reg_token": 4}])
def test_a_model_without_a_class_token_has_none(before: dict[str, int]) -> None:
    net = Tokens(2, before, {})
    with pytest.raises((OptionError, LayerError), match="no class token"):
        record(net, torch.randn(4, 3, 4, 4), tokens="class")


class Written(Tokens):
    """Puts patches into a tensor with room for a class token, by a write or by a pad."""

    def __init__(self, write: bool) -> None:
        super().__init__(2, {"cls_token": 1}, {})
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).mT
        if self.write:
            tokens = patches.new_zeros(len(x), 5, 6)
            tokens[:, 0] = self.cls_token[0, 0]
            tokens[:, 1:] = patches
        else:
            tokens = functional.pad(patches, (0, 0, 1, 0))
        return self.head(self.act(tokens + self.fc(tokens)).mean(1))


@pytest.mark.parametrize("write", [True, False])
def test_tokens_may_be_added_without_a_concatenation(write: bool) -> None:
    net, x = Written(write), torch.randn(4, 3, 4, 4)
    output = watched(net, "act", x)
    torch.testing.assert_close(record(net, x, tokens="patch")["act"], output[:, 1:].mean(1))
    if write:
        torch.testing.assert_close(record(net, x, tokens="class")["act"], output[:, 0])
    else:
        with pytest.raises(OptionError, match="the model has no class token"):
            record(net, x, tokens="class")
