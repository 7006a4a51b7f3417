"""Activation functions that are called as functions are layers, like modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from function_networks import NAMES, Calls, Mixed, X, by_hand, in_place, modes
from probekit.capture.functions import called_activation, named_functions
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError


def clamp_in_place(x: Tensor) -> Tensor:
    torch.clamp_(x, min=0)
    return x


CALLS: dict[str, tuple[Callable[[Tensor], Tensor], str, Callable[[Tensor], Tensor]]] = {
    "F.relu": (functional.relu, "relu", torch.relu),
    "F.relu in place": (lambda x: functional.relu(x, inplace=True), "relu", torch.relu),
    "torch.relu": (torch.relu, "relu", torch.relu),
    "x.relu": (lambda x: x.relu(), "relu", torch.relu),
    "x.relu_": (in_place, "relu", torch.relu),
    "F.relu_": (functional.relu_, "relu", torch.relu),
    "aten": (torch.ops.aten.relu, "relu", torch.relu),
    "F.relu6": (functional.relu6, "relu6", lambda x: x.clamp(0, 6)),
    "F.gelu": (functional.gelu, "gelu", nn.GELU()),
    "F.silu": (functional.silu, "silu", lambda x: x * x.sigmoid()),
    "F.mish": (functional.mish, "mish", nn.Mish()),
    "F.elu": (functional.elu, "elu", nn.ELU()),
    "F.selu": (torch.selu, "selu", nn.SELU()),
    "F.celu": (functional.celu, "celu", nn.CELU()),
    "F.leaky_relu": (functional.leaky_relu, "leaky_relu", nn.LeakyReLU()),
    "torch.sigmoid": (torch.sigmoid, "sigmoid", nn.Sigmoid()),
    "x.sigmoid": (lambda x: x.sigmoid(), "sigmoid", nn.Sigmoid()),
    "F.sigmoid": (functional.sigmoid, "sigmoid", nn.Sigmoid()),
    "expit": (torch.special.expit, "sigmoid", nn.Sigmoid()),
    "torch.tanh": (torch.tanh, "tanh", nn.Tanh()),
    "F.hardswish": (functional.hardswish, "hardswish", nn.Hardswish()),
    "F.hardsigmoid": (functional.hardsigmoid, "hardsigmoid", nn.Hardsigmoid()),
    "F.hardtanh": (functional.hardtanh, "hardtanh", nn.Hardtanh()),
    "F.softplus": (functional.softplus, "softplus", nn.Softplus()),
    "F.softsign": (functional.softsign, "softsign", nn.Softsign()),
    "F.logsigmoid": (functional.logsigmoid, "logsigmoid", nn.LogSigmoid()),
    "F.threshold": (lambda x: functional.threshold(x, 0.1, 0.0), "threshold", nn.Threshold(0.1, 0)),
    "F.prelu": (lambda x: functional.prelu(x, torch.full((1,), 0.25)), "prelu", nn.PReLU()),
    "x.clamp": (lambda x: x.clamp(min=0), "clamp", torch.relu),
    "x.clamp by place": (lambda x: x.clamp(0), "clamp", torch.relu),
    "torch.clamp_": (clamp_in_place, "clamp", torch.relu),
    "x.clip": (lambda x: x.clip(0, 6), "clip", lambda x: x.clamp(0, 6)),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), "clamp_min", torch.relu),
    "maximum": (lambda x: torch.maximum(x, torch.zeros(())), "maximum", torch.relu),
    "max of a bound per channel": (
        lambda x: torch.max(torch.full((1, 5, 1, 1), 0.1), x), "max", lambda x: x.clamp(min=0.1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
@torch.no_grad()
def test_a_function_is_recorded_like_a_module(case: str) -> None:
    function, name, reference = CALLS[case]
    net = Calls(function).eval()
    expected = reference(net.conv(X)).mean((2, 3))
    output = net(X)
    with Recorder(net) as recorder:
        for _ in range(3):
            torch.testing.assert_close(net(X), output, rtol=0, atol=0)
            assert list(recorder.activations) == [name]
            torch.testing.assert_close(recorder.activations[name], expected)
            assert modes() == 0
    assert [layer.function for layer in recorder.layers] == [name]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(0, 1),
        lambda x: x.clamp(min=0.1),
        lambda x: x.clamp(min=torch.ones(())),
        lambda x: torch.maximum(x, x.flip(1)),
        lambda x: torch.maximum(x, x.mean((1, 2, 3), keepdim=True)),
        lambda x: x.max(1, keepdim=True).values + x,
        lambda x: x.softmax(1),
        lambda x: x.abs(),
    ],
)
def test_other_functions_are_not_activation_functions(function: Callable[[Tensor], Tensor]) -> None:
    message = "runs no activation function, neither as a module .* a type among Conv2d, Linear"
    with Recorder(Calls(function)) as recorder, pytest.raises(LayerError, match=message):
        recorder(X)
    assert modes() == 0


def test_operators_of_exported_programs_are_functions() -> None:
    net = Calls(lambda x: torch.ops.aten.relu_.default(x)).eval()
    with torch.no_grad(), Recorder(net) as recorder:
        net(X)
        net(X)
        expected = Calls.forward(net, X)
    assert list(recorder.activations) == ["relu"]
    assert expected.shape[0] == recorder.activations["relu"].shape[0]


@pytest.mark.parametrize(
    "layers", [None, ["block.*"], ["relu*", "!relu_1"], ["relu_3", "block.silu_1"]]
)
def test_names_are_unique_and_in_execution_order(layers: Any) -> None:
    net = Mixed().eval()
    reference = by_hand(net)
    with torch.no_grad(), Recorder(net, layers) as recorder:
        for _ in range(2):
            net(X)
            for name, values in recorder.activations.items():
                if name in reference:
                    torch.testing.assert_close(values, reference[name])
            if layers is None:
                assert list(recorder.activations) == NAMES


def test_the_function_inside_an_activation_module_is_not_a_second_layer() -> None:
    net = Calls(nn.ReLU())
    with Recorder(net, ["*"]) as recorder:
        net(X)
    assert list(recorder.activations) == ["conv", "function", "head"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["relu_1"], [0, 0, 0]),
        (["block.silu", "block.silu_1"], [1, 1, 0]),
        (["relu_3"], [1, 1, 1]),
    ],
)
def test_only_modules_that_run_a_requested_function_are_intercepted(
    layers: list[str], expected: list[int]
) -> None:
    seen: list[int] = []
    net = Mixed().eval()
    for module in (net.head, net.block.conv):
        module.register_forward_hook(lambda module, args, output: seen.append(modes()))
    with Recorder(net, layers):
        net(X)
        seen.clear()
        net(X)
    assert seen == expected


@pytest.mark.parametrize("name", ["relu_9", "block.silu_4", "gelu", "head.relu"])
def test_requesting_a_function_that_does_not_run_lists_those_that_do(name: str) -> None:
    with Recorder(Mixed(), [name]) as recorder, pytest.raises(LayerError, match="was not reached"):
        recorder(X)
    assert modes() == 0


def test_globs_match_the_eleventh_call() -> None:
    def many(x: Tensor) -> Tensor:
        for _ in range(12):
            x = functional.relu(x - 0.01)
        return x

    with Recorder(Calls(many), ["relu_1?"]) as recorder:
        recorder(X)
    assert list(recorder.activations) == ["relu_10", "relu_11"]
    shared = nn.Sequential(*[nn.ReLU()] * 12, nn.Flatten())
    with Recorder(shared, ["0_1[01]"]) as recorder:
        recorder(X)
    assert list(recorder.activations) == ["10", "11"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("passes", [0, 1])
def test_interception_ends_when_the_model_fails(error: Any, passes: int) -> None:
    net = Mixed().eval()
    with pytest.raises(error), Recorder(net) as recorder:  # noqa: PT012
        for _ in range(passes):
            recorder(X)

        def fail(module: Any, args: Any) -> None:
            raise error

        with net.head.register_forward_pre_hook(fail):
            net(X)
    assert modes() == 0
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in net.modules())


@pytest.mark.parametrize("choice", [["block.silu"], ["relu", "relu_2"]])
def test_stop_ends_the_pass_at_a_function(choice: list[str]) -> None:
    net = Mixed().eval()
    reference = by_hand(net)
    with Recorder(net, choice, stop=True) as recorder:
        for _ in range(3):
            assert recorder(X) is None
            assert modes() == 0
            assert list(recorder.activations) == choice
            for name, values in recorder.activations.items():
                torch.testing.assert_close(values.detach(), reference[name])


def test_direct_calls_of_a_submodule_are_not_recorded() -> None:
    net = Mixed().eval()
    with Recorder(net) as recorder:
        net(X)
        kept = recorder.activations
        net.block(torch.rand(4, 5, 3, 3))
        assert recorder.activations is kept
        assert modes() == 0


def test_nested_recorders_record_the_same() -> None:
    net = Mixed().eval()
    with Recorder(net) as outer, Recorder(net) as inner:
        for _ in range(2):
            net(X)
            for name, values in outer.activations.items():
                assert torch.equal(values, inner.activations[name])
    assert modes() == 0


def test_a_compiled_model_is_recorded_as_its_original() -> None:
    net = Mixed().eval()
    compiled = torch.compile(net, backend="eager")
    compiled(X)
    with Recorder(compiled) as recorder:
        for _ in range(2):
            recorder(X)
            assert list(recorder.activations) == NAMES
    torch._dynamo.reset()


def test_the_activation_of_torchs_encoder_layer_is_found() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu").eval()
    x = torch.rand(3, 5, 8)
    with (
        torch.no_grad(),
        Recorder(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)) as one,
    ):
        for _ in range(2):
            one(x)
            assert list(one.activations) == ["layers.0.gelu", "layers.1.gelu"]
            assert one.activations["layers.1.gelu"].shape == (3, 16)


def test_a_clamp_with_keyword_arguments_is_a_relu() -> None:
    assert called_activation(torch.clamp, (), {"input": X, "min": 0}) == "clamp"
    assert called_activation(torch.clamp, (X, 0, 1), {}) is None
    assert called_activation(Tensor.clamp, (X,), {"max": 6, "min": 0.0}) == "clamp"


class _Branching(nn.Module):
    """Calls an activation function in a branch, and another one as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if x.sum() > 0 else self.gelu(x)


def test_functions_named_in_code_are_found_and_modules_are_not() -> None:
    assert named_functions(_Branching()) == {"relu"}
    assert named_functions(nn.ReLU()) == set()
