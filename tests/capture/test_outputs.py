"""Outputs of modules other than a single tensor."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hook_recording import record
from probekit.errors import LayerError, ProbekitWarning

Pair = namedtuple("Pair", "loss logits")


@dataclass
class Output:
    """Similar to the ModelOutput of transformers, but not a mapping."""

    loss: Tensor | None
    logits: Tensor


class Gives(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x)


class Shell(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.inner = Gives(wrap)

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        return x


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize(
    ("wrap", "pick", "factor"),
    [
        (lambda x: (x, double(x)), None, 1),
        (lambda x: (x, double(x)), 1, 2),
        (lambda x: [None, double(x)], None, 2),
        (lambda x: {"ids": x.long(), "values": double(x)}, None, 2),
        (lambda x: {"a": x, "b": double(x)}, "b", 2),
        (lambda x: Pair(x, double(x)), "logits", 2),
        (lambda x: Pair(x, double(x)), 0, 1),
        (lambda x: Output(None, double(x)), None, 2),
        (lambda x: Pair(x.flatten(1).sum(1), double(x)), None, 2),
        (lambda x: Output(x, double(x)), "logits", 2),
        (lambda x: (x, {"deep": [double(x)]}), 1, 2),
        (lambda x: double(x), "logits", 2),
    ],
)
def test_the_requested_tensor_of_a_nested_output_is_recorded(
    wrap: Any, pick: Any, factor: int
) -> None:
    x = torch.rand(4, 3)
    found = record(Shell(wrap), ["inner"], x, output=pick)["inner"]
    torch.testing.assert_close(found, factor * x)


@pytest.mark.parametrize("as_mapping", [True, False])
def test_fields_of_a_transformers_model_output_are_recorded(as_mapping: bool) -> None:
    from collections import OrderedDict

    class ModelOutput(OrderedDict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    x = torch.rand(4, 3)
    pick = "logits" if as_mapping else 1
    net = Shell(lambda x: ModelOutput(hidden=x, logits=double(x)))
    torch.testing.assert_close(record(net, ["inner"], x, output=pick)["inner"], 2 * x)


@pytest.mark.parametrize(
    ("wrap", "pick", "message"),
    [
        (
            lambda x: None,
            None,
            r"'inner' \(Gives\) returns NoneType without a floating-point tensor",
        ),
        (lambda x: (x.long(),), None, "returns tuple without a floating-point tensor"),
        (lambda x: (x, x), 2, r"'inner': output=2 names nothing in an output of type tuple"),
        (lambda x: {"a": x}, "b", "output='b' names nothing in an output of type dict"),
        (lambda x: Output(x, x), "hidden", "output='hidden' names nothing"),
        (lambda x: x.mean(), None, "not a batch of floating-point numbers"),
        (lambda x: x[:3], None, r"the shape \(3, 3\), no axis of which is the batch of 4"),
    ],
)
def test_an_output_without_units_raises_a_one_sentence_error(
    wrap: Any, pick: Any, message: str
) -> None:
    with pytest.raises(LayerError, match=message):
        record(Shell(wrap), ["inner"], torch.rand(4, 3), output=pick)


def test_an_output_without_units_under_a_pattern_is_skipped_with_a_warning() -> None:
    net = nn.Sequential(nn.Tanh(), Shell(lambda x: None))
    with pytest.warns(ProbekitWarning, match=r"not recorded: 1.inner; '1.inner' returns NoneType"):
        found = record(net, ["*"], torch.rand(4, 3))
    assert list(found) == ["0", "1"]
