"""The forward pass in half precision: layers use it, the model is unchanged, statistics are float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probekit as pk
from probekit.errors import DataError, OptionError
from probekit.models.image_model import ImageModel, content_hash

Data = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_layers_run_in_half_precision_and_indices_stay_close(
    model: ImageModel, labeled: Data, precision: Any
) -> None:
    seen: list[torch.dtype] = []
    handle = model.module[3].register_forward_hook(lambda *call: seen.append(call[2].dtype))
    before, training = content_hash(model.module), [m.training for m in model.module.modules()]
    types = {parameter.dtype for parameter in model.module.parameters()}
    results = [
        pk.analyze(model, labeled, layers=["2", "4"], precision=kind, progress=False)
        for kind in (None, precision)
    ]
    handle.remove()
    # The first passes find the layers, before any batch is analyzed.
    assert seen[-1] == getattr(torch, precision)
    assert torch.float32 in seen
    assert content_hash(model.module) == before
    assert [m.training for m in model.module.modules()] == training
    assert {parameter.dtype for parameter in model.module.parameters()} == types
    assert not torch.is_autocast_enabled("cpu")
    plain, half = (result["units"]["class_mean"].values for result in results)
    assert half.dtype == np.float64
    assert not np.array_equal(plain, half)
    np.testing.assert_allclose(half, plain, atol=0.02)
    assert f'"precision": "{precision}"' in results[1].attrs["provenance"]


@pytest.mark.filterwarnings("ignore:images lie from:probekit.errors.ProbekitWarning")
def test_autocast_ends_after_an_exception(network: nn.Module, labeled: Data) -> None:
    images = labeled[0].clone()
    images[20] = 1e30
    with pytest.raises(DataError, match="or run without precision='float16'"):
        pk.analyze(network, (images, labeled[1]), layers="4", precision="float16", progress=False)
    assert not torch.is_autocast_enabled("cpu")


def test_an_unknown_precision_is_refused(network: nn.Module, labeled: Data) -> None:
    with pytest.raises(
        OptionError, match="precision must be None, 'bfloat16' or 'float16', not 'half'"
    ):
        pk.analyze(network, labeled, precision="half", progress=False)  # type: ignore[arg-type]
