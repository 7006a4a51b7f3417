"""A network that can fail in any of its parts, and everything in it that recording could change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything in a model that recording could change."""
    return {
        "hooks": [
            len(hooks)
            for child in module.modules()
            for hooks in (
                child._forward_hooks,
                child._forward_pre_hooks,
                child._backward_hooks,
                child._forward_hooks_with_kwargs,
                child._forward_pre_hooks_with_kwargs,
                child._forward_hooks_always_called,
            )
        ],
        "modes": [child.training for child in module.modules()],
        "attributes": [sorted(vars(child)) for child in module.modules()],
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": [(one.requires_grad, one.grad) for one in module.parameters()],
        "devices": [one.device for one in (*module.parameters(), *module.buffers())],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name in before.keys() - {"state"}:
        assert before[name] == after[name], name
    assert before["state"].keys() == after["state"].keys()
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name]), name


class Fragile(nn.Module):
    """A network in mixed modes, one part of which can be made to raise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6).eval(),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 4, 3),
            nn.ReLU(),
        )
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 3)
        self.unused = nn.Tanh()
        self.body[0].weight.requires_grad_(False)
        self.bad_at: int | None = None
        self.error: BaseException = RuntimeError("broken")

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.body):
            if number == self.bad_at:
                raise self.error
            x = layer(x)
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits
