"""Operations that act like activation functions are named in a note; others are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from function_networks import Calls, X
from probekit.capture.plan import plan
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ProbekitWarning


def test_a_gelu_written_as_a_formula_is_reported_as_missing() -> None:
    net = Calls(lambda x: functional.relu(x) + x * (1 + torch.erf(x / 2**0.5)) / 2)
    with pytest.warns(ProbekitWarning, match="may be missing: 'the model' computes erf"):
        table = plan(net, X)
    assert table["layer"].tolist() == ["relu"]
    assert "computes erf by itself" in table.attrs["notes"][0]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x * (x > 0), "mul"),
        (lambda x: (x >= 0) * x, "mul"),
        (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "where"),
        (lambda x: torch.where(x < 0, 0.1 * x, x), "where"),
        (lambda x: x.masked_fill(x < 0, 0), "masked_fill"),
    ],
)
def test_an_activation_function_written_by_hand_is_reported_as_missing(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    net = Calls(lambda x: function(functional.relu(x) - 0.1))
    with pytest.warns(ProbekitWarning, match="may be missing: 'the model' computes") as told:
        found = plan(net, X)["layer"].tolist()
    assert found == ["relu"]
    assert name in str(told[0].message)


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x * logistic(x.mean((2, 3), keepdim=True)), "exp"),
        (lambda x: x * logistic(functional.adaptive_max_pool2d(x, 1)), "exp"),
        (lambda x: x * (x.mean((2, 3), keepdim=True) / 6 + 0.5).clamp(0, 1), "clamp"),
        (lambda x: functional.max_pool2d(x, 2) * logistic(functional.max_pool2d(x, 2)), "exp"),
        (lambda x: torch.exp(-((x - 0.1) ** 2)), "exp"),
        (lambda x: x.sort(1).values, "sort"),
        (lambda x: x.cummax(1).values, "cummax"),
        (lambda x: torch.arange(9.0)[torch.bucketize(x, torch.arange(8.0))], "index"),
        (lambda x: torch.stack([x, torch.zeros_like(x)]).logsumexp(0), "logsumexp"),
        (lambda x: torch.cond(x.sum() < 1e9, torch.tanh, torch.relu, (x,)), "cond"),
        (
            lambda x: torch.zeros_like(x).scatter(1, x.topk(2, 1).indices, x.topk(2, 1).values),
            "topk",
        ),
    ],
)
def test_other_functions_written_by_hand_are_named_after_the_operation_that_shapes_them(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    net = Calls(lambda x: function(functional.relu(x) - 0.1))
    with pytest.warns(ProbekitWarning, match=f"may be missing: 'the model' computes {name} by"):
        assert plan(net, X)["layer"].tolist() == ["relu"]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x * torch.sigmoid(1.702 * x), ["sigmoid"]),
        (lambda x: x.mul_(x.sigmoid()), ["sigmoid"]),
        (lambda x: x * functional.softplus(x).tanh(), ["softplus", "tanh"]),
        (lambda x: functional.relu6(x + 3) * (x / 6), ["relu6"]),
        (lambda x: functional.relu(x) * functional.relu(x), ["relu", "relu_1"]),
    ],
)
def test_a_product_with_an_activation_function_of_itself_is_reported_as_missing(
    function: Callable[[Tensor], Tensor], names: list[str]
) -> None:
    net = Calls(lambda x: function(x - 0.1))
    with pytest.warns(ProbekitWarning, match="may be missing: 'the model' computes product by"):
        assert plan(net, X)["layer"].tolist() == names


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x[:, :2] * x[:, 2:4].sigmoid(),
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda x: x + x.sigmoid(),
    ],
)
@pytest.mark.filterwarnings("error::probekit.errors.ProbekitWarning")
def test_gates_of_other_units_and_of_pooled_maps_are_not_reported(
    gate: Callable[[Tensor], Tensor],
) -> None:
    net = Calls(lambda x: functional.pad(gate(x), (0, 0, 0, 0, 0, 5 - gate(x).shape[1])))
    assert plan(net, X)["layer"].tolist()[0] == "sigmoid"


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def _instance(x: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) / ((x - mean) ** 2).mean((2, 3), keepdim=True).add(1e-5).sqrt()


def _response(x: Tensor) -> Tensor:
    norm = x.norm(dim=(2, 3), keepdim=True)
    return x + x * norm / (norm.mean(1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    "function",
    [
        _rms,
        _instance,
        _response,
        lambda x: _rms(functional.avg_pool2d(x, 2)),
        lambda x: functional.normalize(_rms(x.mean((2, 3), keepdim=True))),
        lambda x: functional.local_response_norm(x, 3),
    ],
)
@pytest.mark.filterwarnings("error::probekit.errors.ProbekitWarning")
def test_norms_of_maps_and_of_pooled_maps_are_not_reported(
    function: Callable[[Tensor], Tensor],
) -> None:
    net = Calls(lambda x: function(functional.relu(x) - 0.1))
    assert plan(net, X)["layer"].tolist() == ["relu"]


@pytest.mark.filterwarnings("error::probekit.errors.ProbekitWarning")
def test_other_masks_are_not_reported() -> None:
    mask = torch.arange(6) > 2
    net = Calls(lambda x: torch.where(mask, functional.relu(x), 0) * mask * (x.detach() != 0))
    assert plan(net, X)["layer"].tolist() == ["relu"]


def _zero_negative(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: x * (x > 0).float(), "mul"),
        (lambda x: x * torch.heaviside(x, torch.zeros(())), "heaviside"),
        (_zero_negative, "index_put"),
        (torch.sin, "sin"),
        (torch.sign, "sign"),
        (lambda x: (x + x.abs()) / 2, "abs"),
        (lambda x: x - x.clamp(max=0), "clamp"),
        (lambda x: x - torch.minimum(x, torch.zeros(())), "minimum"),
        (lambda x: torch.log1p(torch.exp(x)), "exp"),
        (lambda x: x * x, "square"),
        (lambda x: x * (x + 1), "square"),
        (lambda x: x**2, "pow"),
        (lambda x: 1 / (1 + torch.exp(-x)), "exp"),
        (lambda x: torch.lerp(0.1 * x, x, (x > 0).float()), "lerp"),
        (lambda x: torch.stack([x, x.flip(1)]).amax(0), "amax"),
        (lambda x: torch.maximum(x, x.flip(1)), "maximum"),
        (lambda x: _Square.apply(x), "pow"),
    ],
)
def test_activation_functions_written_by_hand_are_named(
    function: Callable[[Tensor], Tensor], what: str
) -> None:
    with pytest.raises(LayerError, match=f"runs no activation .*'the model' computes {what} by"):
        plan(Calls(function), X)
    net = Calls(lambda x: function(functional.relu(x) - 0.1))
    with pytest.warns(ProbekitWarning, match=f"may be missing: 'the model' computes {what}"):
        assert plan(net, X).layer.tolist() == ["relu"]


def _polar(x: Tensor) -> Tensor:
    return torch.polar(x, x.flip(1)).real


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x, rest: x * rest(x), "product"),
        (lambda x, rest: torch.addcmul(x, rest(x), x), "product"),
        (lambda x, rest: rest(x)[:, :, 1:] * rest(x)[:, :, :-1], "product"),
        (lambda x, rest: _polar(rest(x)), "polar"),
        (lambda x, rest: torch.complex(rest(x), x).abs(), "abs"),
        (lambda x, rest: torch.from_numpy(np.maximum(rest(x).detach().numpy(), 0)), "with NumPy"),
        (lambda x, rest: torch.as_tensor(np.tanh(np.asarray(rest(x).detach()))), "with NumPy"),
        (
            lambda x, rest: torch.fake_quantize_per_tensor_affine(rest(x), 0.01, 0, 0, 255),
            "fake_quantize_per_tensor_affine",
        ),
    ],
)
def test_products_numpy_and_quantization_that_bend_are_named(
    function: Callable[[Tensor, nn.Module], Tensor], what: str
) -> None:
    net = Calls(lambda x: function(first(functional.relu(x)), rest))
    net.first, net.rest = first, rest = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)
    with pytest.warns(ProbekitWarning, match=f"may be missing: 'the model' computes {what}"):
        assert "relu" in plan(net, X).layer.tolist()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, rest: x * rest(x).softmax(1),
        lambda x, rest: x * rest(x.mean((2, 3), keepdim=True)),
        lambda x, rest: x.sigmoid() * rest(x),
        lambda x, rest: functional.relu(x) * rest(functional.relu(x)),
        lambda x, rest: torch.view_as_real(torch.complex(x, rest(x)) * 2j).sum(-1),
        lambda x, rest: torch.fft.irfft2(torch.fft.rfft2(x) * 2j, s=x.shape[2:]),
        lambda x, rest: torch.fake_quantize_per_tensor_affine(rest(x), 0.01, 0, -128, 127),
        lambda x, rest: x + 0 * float(x.mean().detach().numpy()),
    ],
)
def test_other_products_complex_numbers_and_quantization_are_not_reported(
    function: Callable[[Tensor, nn.Module], Tensor],
) -> None:
    net = Calls(lambda x: function(first(functional.relu(x)), rest))
    net.first, net.rest = first, rest = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)
    with torch.no_grad(), Recorder(net) as recorder:
        recorder(X)
    assert "may be missing" not in " ".join(recorder.notes)


def _observed(x: Tensor) -> Tensor:
    number, whole = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    return torch.fused_moving_avg_obs_fake_quant(
        x, whole, whole + 1, -number, number, number / 64, whole.int(), 0.01, -128, 127, 0
    )


def test_quantization_that_observes_ranges_is_not_reported() -> None:
    net = Calls(lambda x: rest(_observed(first(functional.relu(x)))))
    net.first, net.rest = first, rest = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)
    with torch.no_grad(), Recorder(net) as recorder:
        recorder(X)
    assert "may be missing" not in " ".join(recorder.notes)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_activation_function_fused_into_a_quantized_layer_is_named() -> None:
    quantization = torch.ao.quantization
    net = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3),
        quantization.DeQuantStub(), nn.GELU(), nn.AdaptiveAvgPool2d(1),
    ).eval()  # fmt: skip
    net = quantization.fuse_modules(net, [["1", "2"]])
    net.qconfig = quantization.default_qconfig
    net = quantization.prepare(net)
    net(X)
    with torch.no_grad(), Recorder(quantization.convert(net)) as recorder:
        recorder(X)
    assert list(recorder.activations) == ["5"]
    (note,) = recorder.notes
    assert note.startswith("layers may be missing: '1' computes conv2d_relu by itself; name it")


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.pow(2)


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.normalize(x, dim=1),
        lambda x: x * (x.pow(2).mean(1, keepdim=True) + 1e-6).rsqrt(),
        lambda x: x * (x.pow(2).mean((2, 3), keepdim=True) - x.mean((2, 3), keepdim=True) ** 2),
        lambda x: x / (1 + functional.avg_pool2d(x * x, 3, 1, 1)) ** 0.75,
        lambda x: functional.local_response_norm(x, 3),
        lambda x: x + x * x.norm(dim=(2, 3), keepdim=True),
        lambda x: x[..., :1, :1] * (1 + x[..., :1, :1].norm(dim=(2, 3), keepdim=True)),
        lambda x: x * torch.cat([x.mean(1, True), x.amax(1, True)], 1).sum(1, True).sigmoid(),
        lambda x: ((x @ x.mT).exp() / (x @ x.mT).exp().sum(-1, keepdim=True)) @ x,
        lambda x: functional.dropout(x, 0.5) * 0.1 + x.masked_fill(torch.arange(6) > 4, 0),
    ],
)
def test_norms_gates_and_attention_are_not_reported(function: Callable[[Tensor], Tensor]) -> None:
    net = Calls(lambda x: functional.relu(rest(function(x))))
    net.rest = rest = nn.Conv2d(5, 5, 1)
    with torch.no_grad(), Recorder(net) as recorder:
        recorder(X)
    assert "may be missing" not in " ".join(recorder.notes)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_modules_are_not_reported(kind: type[nn.Module]) -> None:
    net = Calls(lambda x: functional.relu(rnn(x.mean(2).transpose(1, 2))[0][..., None]).mT[:, :5])
    net.rnn = rnn = kind(5, 5, num_layers=2, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "may be missing" not in " ".join(plan(net, X).attrs["notes"])


def test_sines_of_positions_are_not_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(Calls(lambda x: functional.relu(x + torch.sin(torch.arange(6.0)))), X)


def test_masks_of_attention_are_not_reported() -> None:
    def masked(x: Tensor) -> Tensor:
        mask = x.new_zeros(x.shape[-2:])
        for number, row in enumerate((slice(2), slice(2, None))):
            mask[row] = number
        return functional.relu(x + mask.masked_fill(mask != 0, -100.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(Calls(masked), X)
