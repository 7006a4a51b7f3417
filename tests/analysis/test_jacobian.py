"""The norm of the logits' Jacobian, compared with torch's own Jacobian and between methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from probekit.errors import ModelError, OptionError


def of_torch(model: pk.ImageModel, images: Tensor) -> list[float]:
    net = model.module.eval()
    return [
        float(
            torch.autograd.functional.jacobian(
                lambda x: net(model.normalize(x[None]))[0], image
            ).norm()
        )
        for image in images
    ]


def test_exact_norms_equal_those_of_torch(
    model: pk.ImageModel, labeled: tuple[Tensor, Tensor]
) -> None:
    found = pk.jacobian_norm(model, labeled, method="exact", batch_size=8)
    assert model.module.training
    expected = of_torch(model, labeled[0])
    np.testing.assert_allclose(found["jacobian_norm"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["mean"], np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(found["sem"], np.std(expected, ddof=1) / 30**0.5, rtol=1e-3)
    assert found["label"].values.tolist() == labeled[1].tolist()
    assert (found["probe_error"] == 0).all()


@pytest.mark.parametrize("rank", [1, 2, 10])
def test_probes_are_corrected_for_estimation_noise(rank: int) -> None:
    """A linear map whose Jacobian has a known norm of 3."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    weight = torch.randn(10, rank) @ torch.randn(rank, 16)
    net[1].weight.data = 3 * weight / weight.norm()
    data = (torch.rand(2000, 1, 4, 4), torch.arange(2000) % 2)
    found = pk.jacobian_norm(net, data, method="probes", probes=12, batch_size=500)
    assert abs(found["mean"] - 3) < 4 * found["sem"] + 3 / (8 * 12**2)
    error = float((found["jacobian_norm"] - 3).std())
    np.testing.assert_allclose(np.sqrt((found["probe_error"] ** 2).mean()), error, rtol=0.1)
    if rank == 1:
        assert found["mean"] - 4 * found["sem"] > 3 * (1 - 1 / 48), "uncorrected, it would be seen"


def test_probes_do_not_depend_on_the_batches(
    model: pk.ImageModel, labeled: tuple[Tensor, Tensor]
) -> None:
    one, other = (
        pk.jacobian_norm(model, labeled, method="probes", probes=5, batch_size=size, memory=memory)
        for size, memory in ((30, 2**30), (7, 10_000))
    )
    np.testing.assert_allclose(one["jacobian_norm"], other["jacobian_norm"], rtol=1e-4)


@pytest.mark.parametrize(("probes", "method"), [(2, "probes"), (3, "exact")])
def test_the_default_method_is_the_one_with_fewer_passes(
    model: pk.ImageModel, labeled: tuple[Tensor, Tensor], probes: int, method: str
) -> None:
    assert pk.jacobian_norm(model, labeled, probes=probes, limit=5).attrs["method"] == method


@pytest.mark.parametrize(
    ("net", "options", "error", "said"),
    [
        (nn.Identity(), {}, ModelError, r"gives \(batch, logits\), not \(2, 1, 4, 4\)"),
        (
            nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()),
            {},
            ModelError,
            "depend on the other samples",
        ),
        (nn.Flatten(), {"method": "probes", "probes": 1}, OptionError, "at least 2 probes"),
        (nn.Flatten(), {"method": "quick"}, OptionError, "not 'quick'"),
    ],
)
def test_invalid_requests_are_reported(
    net: nn.Module, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    data = [(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))]
    with pytest.raises(error, match=said):
        pk.jacobian_norm(net, data, **options)
