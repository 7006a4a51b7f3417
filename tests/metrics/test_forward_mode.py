"""Operations whose forward-mode derivative is missing or wrong never give a wrong gradient."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from probekit.analysis.analyze import analyze
from probekit.analysis.jacobian import jacobian_norm
from probekit.errors import ModelError, ProbekitWarning
from probekit.metrics.gradient_variability import GradientVariability

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 2
UNITS = 40
pytestmark = pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")


class NoForwardMode(torch.autograd.Function):
    """x squared, without a forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class ZeroForward(torch.autograd.Function):
    """x squared, with a forward-mode derivative of zero."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.zeros_like(tangent)


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv2d(3, 18, 3, padding=1)
        self.convolution = torchvision.ops.DeformConv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x, self.offset(x))


class Regions(nn.Module):
    """A region of each image, by a torchvision operation."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        corners = x.new_tensor([0.3, 0.3, 6.2, 6.4]).expand(len(x), 4)
        numbers = torch.arange(len(x)).to(x)[:, None]
        return self.operation(x, torch.cat([numbers, corners], 1), 8)


class Sampled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        turn = x.new_tensor([[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]).expand(len(x), 2, 3)
        return functional.grid_sample(
            x, functional.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False
        )


class Applied(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


OPERATIONS: dict[str, Any] = {
    "deform_conv2d": Deformed,
    "roi_align": lambda: Regions(torchvision.ops.roi_align),
    "roi_pool": lambda: Regions(torchvision.ops.roi_pool),
    "grid_sample": Sampled,
    "no jvp": lambda: Applied(NoForwardMode),
    "zero jvp": lambda: Applied(ZeroForward),
}
if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15):  # it has a forward mode since then
    del OPERATIONS["grid_sample"]


class Net(nn.Module):
    """A layer before the operation and a layer after it, with or without a skip connection around it."""

    def __init__(self, name: str, skip: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.early = nn.Conv2d(3, UNITS, 1), nn.Softplus()
        self.narrow, self.operation = nn.Conv2d(UNITS, 3, 1), OPERATIONS[name]()
        self.second, self.late = nn.Conv2d(3, UNITS, 3), nn.Softplus()
        self.head, self.skip = nn.Linear(UNITS, UNITS), skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.early(self.first(x)))
        found = self.operation(x)
        found = found + 0.5 * x if self.skip else found
        return self.head(self.late(self.second(found)).mean((2, 3)))


def by_autograd(net: nn.Module, layer: str) -> np.ndarray[Any, Any]:
    """The mean over images of each unit's gradient norm, computed one unit at a time."""
    images = IMAGES.clone().requires_grad_()
    kept: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out))
    net(images)
    hook.remove()
    pooled = kept[0].mean((2, 3))
    norms = [
        torch.autograd.grad(pooled[:, unit].sum(), images, retain_graph=True)[0]
        .flatten(1)
        .norm(dim=1)
        for unit in range(UNITS)
    ]
    return torch.stack(norms, 1).mean(0).numpy()


@pytest.mark.parametrize(
    ("name", "skip"),
    [(name, skip) for name in OPERATIONS for skip in (False, True)],
)
def test_the_default_is_exact_and_notes_it_when_forward_mode_fails(name: str, skip: bool) -> None:
    net = Net(name, skip).eval()
    with pytest.warns(
        ProbekitWarning, match=r"gradients of .*late.* are computed by backward passes"
    ):
        result = analyze(
            net,
            (IMAGES, LABELS),
            ["early", "late"],
            GradientVariability(probes=16),
            progress=False,
        )
    found = result["units"]["gradient_norm_mean"]
    late = found.values[result["units"]["layer"].values == "late"]
    np.testing.assert_allclose(late, by_autograd(net, "late"), rtol=1e-4)
    early = found.values[result["units"]["layer"].values == "early"]
    np.testing.assert_allclose(early, by_autograd(net, "early"), rtol=0.3)
    assert '"late"' in result.attrs["provenance"].split("exact_layers")[1].split("]")[0]


@pytest.mark.parametrize("name", OPERATIONS)
def test_explicitly_requested_probes_are_refused_without_forward_mode(name: str) -> None:
    net = Net(name, skip=True).eval()
    probes = GradientVariability(method="probes", probes=4)
    with pytest.raises(ModelError, match=r"use method='exact'"):
        analyze(net, (IMAGES, LABELS), "late", probes, progress=False)
    with pytest.raises(ModelError, match=r"use method='exact'"):
        jacobian_norm(net, (IMAGES, LABELS), method="probes", probes=4, progress=False)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_jacobian_is_exact_without_forward_mode(name: str) -> None:
    net = Net(name, skip=False).eval()
    with pytest.warns(ProbekitWarning, match="gradients of logits are computed by backward passes"):
        found = jacobian_norm(net, (IMAGES, LABELS), probes=4, progress=False)
    assert found.attrs["method"] == "exact"
    right = jacobian_norm(net, (IMAGES, LABELS), method="exact", progress=False)
    np.testing.assert_allclose(found["jacobian_norm"], right["jacobian_norm"], rtol=1e-5)


def test_only_layers_after_the_operation_use_the_exact_method() -> None:
    net = Net("zero jvp", skip=False).eval()
    with pytest.warns(ProbekitWarning) as told:
        analyze(
            net,
            (IMAGES, LABELS),
            ["early", "late"],
            GradientVariability(probes=16),
            progress=False,
        )
    (sentence,) = (str(one.message) for one in told if "by backward passes" in str(one.message))
    assert "early" not in sentence


class Ordinary(nn.Module):
    """Operations whose forward-mode derivatives agree with their backward ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, UNITS, 3), nn.BatchNorm2d(UNITS)
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.attention = nn.MultiheadAttention(UNITS, 4, batch_first=True)
        self.head, self.gelu = nn.Linear(UNITS, UNITS), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.first(x)))).flatten(2).transpose(1, 2)
        x = torch.where(x > 0.1, x, x.double().square().to(x.dtype))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.gelu(self.head(x)).mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ordinary_networks_use_probes_in_any_precision(dtype: torch.dtype) -> None:
    net = Ordinary().eval().to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the gradients of", ProbekitWarning)
        result = analyze(
            net,
            (IMAGES.to(dtype), LABELS),
            ["act", "gelu"],
            GradientVariability(probes=16),
            progress=False,
        )
    assert '"exact_layers": []' in result.attrs["provenance"]
