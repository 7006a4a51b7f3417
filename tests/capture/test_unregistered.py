"""Activation functions in modules that are no submodules, in TorchScript, and in rare branches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import probekit as pk
from function_networks import Calls, X, modes
from probekit.capture.plan import plan
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ProbekitWarning


class Inline(nn.Module):
    """Applies modules that are created in forward, or held in a plain list."""

    def __init__(self, first: Callable[[], nn.Module], second: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3), nn.Linear(6, 3)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        x = self.second()(self.two(self.first()(self.one(x))))
        return self.head(x.mean((2, 3)))


HELD = [nn.Tanh(), nn.ReLU(inplace=True)]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (nn.ReLU, nn.ReLU, ["relu", "relu_1"]),
        (lambda: nn.Sequential(nn.Identity(), nn.GELU()), nn.Sigmoid, ["gelu", "sigmoid"]),
        (lambda: HELD[0], lambda: HELD[1], ["tanh", "relu"]),
    ],
)
def test_modules_that_are_not_registered_are_functions_of_their_caller(
    first: Callable[[], nn.Module], second: Callable[[], nn.Module], names: list[str]
) -> None:
    net = Inline(first, second).eval()
    with torch.no_grad():
        one = first()(net.one(X))
        two = second()(net.two(one))
    expected = dict(zip(names, (one.mean((2, 3)), two.mean((2, 3))), strict=True))
    with Recorder(net) as recorder, torch.no_grad():
        for _ in range(2):
            net(X)
            assert list(recorder.activations) == names
            for name, values in expected.items():
                torch.testing.assert_close(recorder.activations[name], values)
    assert modes() == 0


def test_layers_in_a_plain_list_are_recorded() -> None:
    blocks = [nn.Sequential(nn.Conv2d(5, 5, 1), nn.ReLU()) for _ in range(2)]
    net = Calls(lambda x: blocks[1](blocks[0](x))).eval()
    recorded = pk.record(net, (X, torch.arange(4)), batch_size=2, progress=False)
    with torch.no_grad():
        one = blocks[0](net.conv(X))
        expected = torch.cat([maps.mean((2, 3)) for maps in (one, blocks[1](one))], 1)
    torch.testing.assert_close(torch.from_numpy(recorded["activation"].values), expected)


@pytest.mark.parametrize("modules", [True, False])
def test_weights_in_a_plain_list_over_the_tokens_of_each_channel_make_units(modules: bool) -> None:
    one, two = nn.Linear(36, 7), nn.Linear(7, 36)
    layers = [one, two] if modules else [lambda x: x @ one.weight.T, lambda x: x @ two.weight.T]
    norm = nn.LayerNorm(5)

    def mix(x: Tensor) -> Tensor:
        tokens = norm(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return (x.flatten(2) + layers[1](functional.gelu(layers[0](tokens)))).view(x.shape)

    net = Calls(mix).eval()
    table = plan(net, X, verify=True)
    assert table[["layer", "unit_axis", "units"]].values.tolist() == [["gelu", 2, 7]]
    assert table[["unit_axis_certain", "values"]].all(axis=None)
    with Recorder(net) as recorder, torch.no_grad():
        net(X)
        tokens = norm(net.conv(X).flatten(2).transpose(1, 2)).transpose(1, 2)
        expected = functional.gelu(layers[0](tokens)).mean(1)
    torch.testing.assert_close(recorder.activations["gelu"], expected)


class HardSigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + 3) / 6  # type: ignore[no-any-return]  # untyped in torch


class HardSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(x)  # type: ignore[no-any-return]  # untyped in torch


def test_an_activation_function_made_of_another_user_defined_one_is_one_layer() -> None:
    net = Calls(HardSwish()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan(net, X).layer.tolist() == ["function"]
    with Recorder(net) as recorder, torch.no_grad():
        net(X)
        expected = functional.hardswish(net.conv(X)).mean((2, 3))
    torch.testing.assert_close(recorder.activations["function"], expected)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.maximum(x, torch.zeros_like(x)), "maximum"),
        (lambda x: torch.max(torch.zeros_like(x), x), "max"),
        (lambda x: torch.fmax(x, torch.zeros(())), "fmax"),
        (lambda x: x.clamp(min=torch.zeros(())), "clamp"),
    ],
)
def test_maxima_with_zeros_are_recorded(function: Callable[[Tensor], Tensor], name: str) -> None:
    net = Calls(function).eval()
    table = plan(net, X, verify=True)
    assert table.layer.tolist() == [name]
    assert table[["values", "complete"]].all(axis=None)
    with Recorder(net) as recorder, torch.no_grad():
        net(X)
        expected = net.conv(X).relu().mean((2, 3))
    torch.testing.assert_close(recorder.activations[name], expected)


@pytest.mark.parametrize("slope", [0.1, -0.5])
def test_a_leaky_relu_written_as_a_maximum_is_recorded(slope: float) -> None:
    net = Calls(lambda x: torch.maximum(slope * x, x)).eval()
    table = plan(net, X, verify=True)
    assert table.layer.tolist() == ["maximum"]
    assert table[["values", "complete"]].all(axis=None)
    with Recorder(net) as recorder, torch.no_grad():
        net(X)
        x = net.conv(X)
    expected = torch.where(x > 0, x, slope * x).mean((2, 3))
    torch.testing.assert_close(recorder.activations["maximum"], expected)


def test_maxima_of_other_tensors_and_bounds_are_not_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for combine in (torch.maximum, torch.minimum):
            net = Calls(lambda x, combine=combine: functional.relu(combine(x, x.flip(1))))
            assert plan(net, X).layer.tolist() == ["relu"]
        assert plan(Calls(lambda x: functional.relu(x.clamp(max=2))), X).layer.tolist() == ["relu"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_functions_in_torchscript_are_reported() -> None:
    scripted: Any = torch.jit.script(_scripted)
    with pytest.warns(ProbekitWarning, match="'the model' computes relu outside Python"):
        assert plan(Calls(lambda x: scripted(functional.silu(x))), X).layer.tolist() == ["silu"]


def _scripted(x: Tensor) -> Tensor:
    return torch.relu(x)


class Rare(nn.Module):
    """Applies another activation function in one forward pass only."""

    def __init__(self, at: int, attention: bool) -> None:
        super().__init__()
        self.at, self.count = at, 0
        self.embed, self.head = nn.Linear(8, 6), nn.Linear(6, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = torch.relu(self.embed(x.flatten(1, 2)))
        if self.attention is not None:
            x = self.attention(x, x, x)[0]
        if self.count == self.at:
            x = torch.tanh(x)
        return self.head(x.mean(1))


class Helped(Rare):
    """Calls the function through other functions."""

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = torch.relu(self.embed(x.flatten(1, 2)))
        return self.head((outer(x) if self.count == self.at else x).mean(1))


class _Operations:
    """A plain object whose methods call activation functions."""

    def act(self, x: Tensor) -> Tensor:
        return x.tanh()


_OPERATIONS = _Operations()


class Held(Rare):
    """Calls the function through an object among its attributes, or a global one."""

    def __init__(self, at: int, operations: Any) -> None:
        super().__init__(at, False)
        self.operations = operations

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = torch.relu(self.embed(x.flatten(1, 2)))
        if self.count == self.at:
            x = (self.operations or [_OPERATIONS])[0].act(x)
        return self.head(x.mean(1))


def outer(x: Tensor) -> Tensor:
    return _inner(x)


def _inner(x: Tensor) -> Tensor:
    return x.tanh()


@pytest.mark.parametrize(
    "net",
    [Helped(27, False), Held(27, [_Operations()]), Held(27, None)],
    ids=["helper", "attribute", "global"],
)
def test_a_function_in_a_rare_call_of_a_helper_is_noted(net: nn.Module) -> None:
    net.eval()
    with Recorder(net), torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(26):
                net(X)
        with pytest.warns(ProbekitWarning, match="'tanh in the model' runs in this forward pass"):
            net(X)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("at", [4, 27])
def test_a_function_in_a_rare_branch_is_noted(at: int, attention: bool) -> None:
    """The code of the model names the function, so that every pass is watched."""
    net = Rare(at, attention).eval()
    with Recorder(net) as recorder, torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(at - 1):
                net(X)
        with pytest.warns(ProbekitWarning, match="'tanh in the model' runs in this forward pass"):
            net(X)
    assert list(recorder.activations) == ["relu"]
    assert modes() == 0


def test_watching_leaves_the_fast_path_of_attention() -> None:
    net = Rare(0, True).eval()
    with torch.no_grad():
        expected = net(X)
        with Recorder(net):
            net(X)
            torch.testing.assert_close(net(X), expected, rtol=0, atol=0)


class Swapped(nn.Module):
    """Runs two convolutions before one shared activation function, later in the other order."""

    def __init__(self, swaps: bool) -> None:
        super().__init__()
        self.swaps, self.count = swaps, 0
        self.one, self.two, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        convolutions = [self.one, self.two]
        if self.swaps and self.count > 2:
            convolutions.reverse()
        for convolution in convolutions:
            x = self.act(convolution(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("swaps", [False, True])
def test_a_shared_module_that_changes_its_place_is_noted(swaps: bool) -> None:
    net = Swapped(swaps).eval()
    with warnings.catch_warnings(record=True) as caught, Recorder(net), torch.no_grad():
        warnings.simplefilter("always")
        for _ in range(20):
            net(X)
    said = [str(one.message) for one in caught]
    assert len(said) == swaps
    assert all("'act' is another part of the model" in one and "after 'two'" in one for one in said)
    assert not any(child._forward_hooks for child in net.modules())


def test_names_with_glob_characters_are_exact() -> None:
    net = nn.Module()
    net.parts = nn.ModuleDict({"fc[0]": nn.Linear(192, 4), "act[0]": nn.ReLU(), "a*": nn.Tanh()})
    net.head = nn.Linear(4, 2)

    def forward(x: Tensor) -> Tensor:
        for part in net.parts.values():
            x = part(x.flatten(1))
        return net.head(x)

    net.forward = forward  # type: ignore[method-assign]
    with Recorder(net, ["parts.act[0]"]) as recorder, torch.no_grad():
        net(X)
        expected = net.parts["fc[0]"](X.flatten(1)).relu()
    torch.testing.assert_close(recorder.activations["parts.act[0]"], expected)


class ByChance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.passes = nn.ReLU(), iter([True] + [False] * 9)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if not next(self.passes) else self.act(x.flatten(1)) - 1
        return torch.tanh(x) * 1


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_a_layer_that_another_pass_does_not_reach_is_refused() -> None:
    with pytest.raises(
        LayerError, match="'act' was reached in one forward pass but not in another"
    ):
        plan(ByChance(), X)


def test_modules_in_other_threads_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Linear(5, 2))

    def forward(x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(lambda: functional.silu(net[2](net[1](net[0](x)))))
            return net[3](later.result())

    net.forward = forward  # type: ignore[method-assign]
    with (
        torch.no_grad(),
        pytest.raises(LayerError, match="runs '0' in another thread"),
        Recorder(net) as recorder,
    ):
        recorder(torch.rand(4, 3))
