"""Compiled passes record the same values as passes of the original model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import probekit as pk
from probekit.errors import ProbekitWarning

Labelled = tuple[Tensor, Tensor]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Resets the compiler so that tests do not share compiled code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that compiled code processed, with a fake compiler that compiles nothing."""
    sizes: list[int] = []

    def compiled(run: Any, **options: Any) -> Any:
        def forward(images: Tensor) -> Any:
            sizes.append(len(images))
            return run(images)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    return sizes


@pytest.mark.slow
def test_compiled_numbers_equal_those_of_the_original_model(
    network: nn.Module, labeled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config, cpu_vec_isa

    # Compiling C++ takes long: no vector instructions, for which torch compiles several programs to
    # find out whether they run, no header for kernels that are compiled later, and no other processes.
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)
    before = list(network.modules())
    expected = pk.analyze(network, labeled, metrics=["selectivity", "dimensionality"], batch_size=8)
    with config.patch(cpp_cache_precompile_headers=False, compile_threads=1):
        found = pk.analyze(
            network, labeled, metrics=["selectivity", "dimensionality"], batch_size=8, compile=True
        )
    for table in ("units", "layers"):
        for name, values in expected[table].to_dataset().data_vars.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(
                    found[table].to_dataset()[name], values, rtol=1e-4, atol=1e-6
                )
    assert list(network.modules()) == before
    assert all(not module._forward_hooks for module in before)


def test_full_batches_run_compiled_and_the_remainder_uncompiled(
    network: nn.Module, labeled: Labelled, compilations: list[int]
) -> None:
    found = pk.record(network, labeled, batch_size=8, compile=True)
    assert compilations == [8, 8, 8]
    expected = pk.record(network, labeled, batch_size=8)
    np.testing.assert_array_equal(found["activation"], expected["activation"])


def test_models_that_cannot_be_compiled_run_uncompiled(
    network: nn.Module, labeled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Any, **options: Any) -> Any:
        def forward(images: Tensor) -> Any:
            raise RuntimeError("no such backend\nand a long story")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(ProbekitWarning, match="the model is not compiled: no such backend$"):
        found = pk.record(network, labeled, compile=True)
    np.testing.assert_array_equal(found["activation"], pk.record(network, labeled)["activation"])


def test_a_compiler_that_changes_values_is_not_used(
    network: nn.Module, labeled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **options: lambda images: run(images * 1.1))
    with pytest.warns(ProbekitWarning, match="layer '2' would have other values"):
        found = pk.record(network, labeled, compile=True)
    np.testing.assert_array_equal(found["activation"], pk.record(network, labeled)["activation"])


def test_functions_are_not_compiled(labeled: Labelled, compilations: list[int]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return torch.relu(self.conv(images))

    with pytest.warns(ProbekitWarning, match="'relu' is a function that a module calls"):
        pk.record(Net(), labeled, compile=True)
    assert compilations == []


def test_robustness_compiles_once_for_all_conditions(
    network: nn.Module, labeled: Labelled, compilations: list[int]
) -> None:
    images = nn.functional.interpolate(labeled[0], (32, 32)), labeled[1]
    net = nn.Sequential(nn.AvgPool2d(4), network)
    given = (net, images, ["fog", "contrast"], (1, 5), "fgsm", (0.01,))
    found = pk.robustness(*given, batch_size=16, compile=True)
    expected = pk.robustness(*given, batch_size=16)
    # The clean images, four conditions of corruptions and one attack, each with one full batch.
    assert compilations == [16] * 6
    xr.testing.assert_identical(
        found["robustness"].to_dataset(), expected["robustness"].to_dataset()
    )
    xr.testing.assert_identical(found["layers"].to_dataset(), expected["layers"].to_dataset())


def test_gradients_measured_between_batches_do_not_compile_the_model_again(
    network: nn.Module, labeled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    metrics = ["selectivity", pk.GradientVariability(method="exact")]
    expected, found = (
        pk.analyze(network, labeled, "4", metrics, batch_size=8, compile=choice)["units"]
        for choice in (False, True)
    )
    assert len(compiled) == 1
    for name in ("selectivity", "gradient_norm_mean"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)
