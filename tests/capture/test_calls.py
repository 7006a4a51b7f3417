"""Modules that are called several times, never, or under two names."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hook_recording import X, conv, hooks, record
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ProbekitWarning


class Reused(nn.Module):
    """Calls one module three times, next to a module with the name of the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.relu_1 = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu_1(self.relu(x)) + self.relu(x - 0.1)).flatten(1)


def test_each_call_of_a_module_is_a_separate_layer() -> None:
    net = nn.Sequential(conv(), nn.ReLU())
    net.forward = lambda x: net[1](net[1](net[0](x)) - 0.2).flatten(1)  # type: ignore[method-assign]
    found = record(net, ["1", "1_1"])
    once = net[1](net[0](X))
    torch.testing.assert_close(found["1"], once.mean((2, 3)))
    torch.testing.assert_close(found["1_1"], net[1](once - 0.2).mean((2, 3)))


def test_a_module_named_like_the_second_call_of_another_keeps_its_name() -> None:
    found = record(Reused())
    assert list(found) == ["relu", "relu_1", "relu_2", "relu_3"]
    torch.testing.assert_close(found["relu_1"], torch.relu(X).tanh().mean((2, 3)))
    torch.testing.assert_close(found["relu_2"], torch.relu(X - 0.1).mean((2, 3)))


def test_a_missing_call_is_reported_with_the_existing_ones() -> None:
    with pytest.raises(LayerError, match="'relu_7' was not reached: 'relu' is called 3 times"):
        record(Reused(), ["relu_7"])


def test_a_glob_may_match_only_a_later_call() -> None:
    assert list(record(Reused(), ["relu_[23]"])) == ["relu_2", "relu_3"]


class Attention(nn.Module):
    """Holds a module that it never calls, as fused attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"drop": nn.Dropout(), "inner": nn.ModuleDict()})
        self.block = nn.Sequential(nn.Linear(3, 3))
        self.block.add_module("unused", nn.Sequential(nn.Dropout()))
        self.block.forward = lambda x: self.block[0](x)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return result


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            ["block.unused.0"],
            r"'block.unused.0' \(Dropout\) exists .* parent that is called is 'block'",
        ),
        (["attention.drop"], r"'attention.drop' \(Dropout\) exists .* no parent of it is called"),
        (["*.unused*"], r"'block.unused' .*nor is any other of the 2 that match '\*.unused\*'"),
        ([nn.Linear, nn.Dropout], "nor is any other of the 2 that match Dropout"),
    ],
)
def test_a_module_that_is_never_called_is_an_error_naming_its_nearest_parent(
    layers: Any, message: str
) -> None:
    net = Attention()
    with pytest.raises(LayerError, match=message):
        record(net, layers, torch.rand(4, 3))
    assert hooks(net) == 0


def test_out_proj_of_torchvision_is_reported_with_its_parent() -> None:
    vit = pytest.importorskip("torchvision").models.VisionTransformer
    net = vit(8, 4, 1, 2, 12, 16, num_classes=3).eval()
    name = "encoder.layers.encoder_layer_0.self_attention"
    with pytest.raises(LayerError, match=f"parent that is called is {name!r}"):
        record(net, [f"{name}.out_proj"])
    assert record(net, [name])[name].shape == (4, 12)


def test_fused_attention_hides_its_map_and_the_error_explains_it() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    x = torch.rand(2, 3, 32, 32)
    with pytest.raises(
        LayerError, match=r"fused attention.* parent that is called is 'blocks.0.attn'"
    ):
        record(net, ["blocks.0.attn.attn_drop"], x)
    net.blocks[0].attn.fused_attn = False
    assert record(net, ["blocks.0.attn.attn_drop"], x)["blocks.0.attn.attn_drop"].shape == (2, 3)


def test_the_fast_path_of_the_transformer_encoder_does_not_skip_the_hooks() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    net = nn.TransformerEncoder(block, 2, enable_nested_tensor=False).eval()
    reference: list[Tensor] = []
    x = torch.rand(3, 5, 8)
    found = record(net, ["layers.1.linear1"], x)["layers.1.linear1"]
    watch = net.layers[1].linear1.register_forward_hook(
        lambda module, args, output: reference.append(output.clone())
    )
    with torch.inference_mode():
        net(x)
    watch.remove()
    torch.testing.assert_close(found, reference[0].mean(1))


def test_a_shared_module_is_found_under_both_names() -> None:
    net = nn.Module()
    net.first, net.second = nn.Linear(3, 4), nn.Tanh()
    net.alias = net.first
    net.forward = lambda x: net.second(net.alias(x))  # type: ignore[method-assign]
    for name in ("first", "alias"):
        found = record(net, [name], torch.rand(4, 3))
        assert list(found) == [name]


class Listed(nn.Module):
    """Calls one activation function three times, under the names of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.acts = nn.ModuleList([self.act] * 3)

    def forward(self, x: Tensor) -> Tensor:
        for act in self.acts:
            x = act(self.conv(x))
        return x.mean((2, 3))


def test_a_name_whose_calls_have_other_names_is_the_first_of_them() -> None:
    net, images = Listed().eval(), torch.rand(2, 3, 4, 4)
    with (
        pytest.warns(ProbekitWarning, match=r"'act' is the first of 3 calls .* acts.1, acts.2$"),
        torch.no_grad(),
        Recorder(net, ["act"]) as recorder,
    ):
        net(images)
    with torch.no_grad():
        expected = net.conv(images).relu().mean((2, 3))
    torch.testing.assert_close(recorder.activations["act"], expected)
    with warnings.catch_warnings(), torch.no_grad(), Recorder(net, ["acts.0"]) as recorder:
        warnings.simplefilter("error")
        net(images)
    torch.testing.assert_close(recorder.activations["acts.0"], expected)


def in_a_list(net: Any, x: Tensor) -> Tensor:
    for layer in [net.one, net.b, net.two, net.a]:
        x = layer(x)
    return x


def zipped(net: Any, x: Tensor) -> Tensor:
    for layer, act in zip([net.one, net.two], [net.b, net.a], strict=True):
        x = act(layer(x))
    return x


def once(net: Any, x: Tensor) -> Tensor:
    act = net.b
    return act(net.two(act(net.one(x))))


@pytest.mark.parametrize(
    ("run", "names"),
    [
        (lambda net, x: net.a(net.two(net.b(net.one(x)))), ["b", "a"]),
        (lambda net, x: nn.Sequential(net.one, net.b, net.two, net.a)(x), ["b", "a"]),
        (in_a_list, ["b", "a"]),
        (zipped, ["b", "a"]),
        (once, ["b", "b_1"]),
    ],
)
def test_a_module_with_two_names_is_named_as_it_was_accessed(run: Any, names: list[str]) -> None:
    net = nn.Module()
    torch.manual_seed(0)
    net.one, net.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
    net.a = net.b = nn.GELU()
    net.forward = lambda x: run(net, x)  # type: ignore[method-assign]
    with torch.no_grad(), Recorder(net) as recorder:
        net(X)
        first = functional.gelu(net.one(X))
        second = functional.gelu(net.two(first))
    assert list(recorder.activations) == names
    expected = [maps.mean((2, 3)) for maps in (first, second)]
    torch.testing.assert_close(list(recorder.activations.values()), expected)


def in_variables(net: Any, x: Tensor) -> Tensor:
    p, q = net.b, net.a
    return q(net.two(p(net.one(x))))


def in_a_list_that_begins_with_it(net: Any, x: Tensor) -> Tensor:
    x = net.one(x)
    for layer in [net.b, net.two, net.a]:
        x = layer(x)
    return x


def called_between(net: Any, x: Tensor) -> Tensor:
    act = net.a
    x = net.two(net.b(net.one(x)))
    return act(x)


@pytest.mark.parametrize(
    ("run", "right"),
    [(in_variables, True), (in_a_list_that_begins_with_it, True), (called_between, False)],
)
def test_names_of_a_module_that_may_be_exchanged_are_noted(run: Any, right: bool) -> None:
    net = nn.Module()
    net.one, net.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
    net.a = net.b = nn.GELU()
    net.forward = lambda x: run(net, x)  # type: ignore[method-assign]
    with (
        torch.no_grad(),
        pytest.warns(ProbekitWarning, match="names of [ab], [ab] may be exchanged"),
        Recorder(net) as recorder,
    ):
        net(X)
    assert list(recorder.activations) == (["b", "a"] if right else ["a", "b"])
    first = functional.gelu(net.one(X)).detach().mean((2, 3))
    torch.testing.assert_close(next(iter(recorder.activations.values())), first)


class Scales(nn.Module):
    """Averages its outputs for an image and for a smaller one, for which it calls itself."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Linear(4, 2)
        self.function, self.error = function, False

    def forward(self, x: Tensor, smaller: bool = True) -> Tensor:
        maps = self.conv(x)
        maps = functional.silu(maps) if self.function else self.act(maps)
        output: Tensor = self.head(maps.mean((2, 3)))
        if self.error and not smaller:
            raise KeyboardInterrupt
        return output + self(functional.avg_pool2d(x, 2), False) if smaller else output


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("stop", [False, True])
def test_a_model_that_calls_itself_is_recorded_in_every_call(function: bool, stop: bool) -> None:
    net = Scales(function)
    name = "silu" if function else "act"
    x = torch.randn(3, 3, 8, 8)
    layers = [name, f"{name}_1"] if stop else None
    with torch.no_grad(), Recorder(net, layers, stop=stop) as recorder:
        expected = [
            functional.silu(net.conv(one)).mean((2, 3)) for one in (x, functional.avg_pool2d(x, 2))
        ]
        for error in (False, True, False):
            net.error = error and not stop
            with suppress(KeyboardInterrupt):
                recorder(x)
    assert list(recorder.activations) == [name, f"{name}_1"]
    torch.testing.assert_close(list(recorder.activations.values()), expected)


def test_a_model_called_by_another_forward_of_itself_begins_a_pass() -> None:
    """As in frameworks whose forward is temporarily a step of training that calls the model."""
    net = Scales(False)
    seen = []

    def step(x: Tensor) -> Tensor:
        del net.forward
        output: Tensor = net(x)
        seen.append(recorder.activations["act"])
        return output

    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad(), Recorder(net) as recorder:
        for _ in range(2):
            net.forward = step  # type: ignore[method-assign]
            net(x)
    expected = functional.silu(net.conv(x)).mean((2, 3)).detach()
    torch.testing.assert_close(seen, [expected, expected])
