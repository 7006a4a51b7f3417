"""The caller's global settings do not affect results, and the package does not change them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from probekit.analysis.ablate import ablate
from probekit.analysis.analyze import analyze
from probekit.analysis.jacobian import jacobian_norm
from probekit.analysis.robustness.robustness import robustness
from probekit.analysis.saliency import unit_saliency
from probekit.capture.record import record
from probekit.data.datasets import load_data
from probekit.errors import ModelError
from probekit.metrics.gradient_variability import GradientVariability
from probekit.models.loading import load_model
from probekit.perturbations.attacks.gradient import PGD
from probekit.perturbations.corruptions.corruption import corrupt
from probekit.runtime.settings import caller_device, own_settings

IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 3
pytestmark = pytest.mark.filterwarnings("ignore")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 40, 3),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 3),
    ).eval()


def outcomes(model: Any, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    data = (images, labels)
    probes = GradientVariability(method="probes", probes=4)
    found = analyze(model, data, metrics=["selectivity", "dimensionality", probes], progress=False)
    robust = robustness(
        model, data, ["fog"], (1,), [PGD(steps=2)], epsilons=[0.01], progress=False, table=32
    )
    units = found["units"]
    order = units["selectivity"]
    return {
        "selectivity": units["selectivity"].values,
        "gradients": units["gradient_norm_mean"].values,
        "jacobian": jacobian_norm(model, data, progress=False)["jacobian_norm"].values,
        "record": record(model, data, progress=False)["activation"].values,
        "attacked": robust["robustness"]["attack_accuracy"].values,
        "ablate": ablate(model, data, order, random=1, progress=False)["accuracy"].values,
        "saliency": unit_saliency(model, images[:2], "2", 0).numpy(),
        "corrupt": corrupt(images[:2], "gaussian_noise", 3, table=32).numpy(),
    }


@cache
def right() -> dict[str, Any]:
    return outcomes(net(), IMAGES, LABELS)


def assert_right(found: dict[str, Any]) -> None:
    for number, value in right().items():
        np.testing.assert_allclose(found[number], value, rtol=1e-5, atol=1e-7, err_msg=number)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "numpy raises": lambda: np.errstate(all="raise"),
    # Tensors on this device hold no data, so a computation with one of ours would raise.
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_global_settings_change_no_result(name: str) -> None:
    model = net()
    right()
    with SETTINGS[name]():
        found = outcomes(model, IMAGES, LABELS)
    assert_right(found)


def test_images_created_in_inference_mode_or_with_gradients_give_the_same_results() -> None:
    with torch.inference_mode():
        images, labels = IMAGES.clone(), LABELS.clone()
    assert_right(outcomes(net(), images, labels))
    assert_right(outcomes(net(), IMAGES.clone().requires_grad_(), LABELS))


def test_weights_created_in_inference_mode_work_or_are_refused_by_name() -> None:
    with torch.inference_mode():
        model = net()
    data = (IMAGES, LABELS)
    ordinary = net()
    for metric in (GradientVariability("exact"), GradientVariability("probes", 4)):
        one, other = (
            analyze(each, data, metrics=metric, progress=False)["units"]["gradient_norm_mean"]
            for each in (model, ordinary)
        )
        np.testing.assert_allclose(one, other, rtol=1e-5)
    for refused in (
        lambda: PGD(steps=1)(model, IMAGES, LABELS, 0.01),
        lambda: unit_saliency(model, IMAGES[:2], "2", 0),
    ):
        with pytest.raises(ModelError, match=r"'0.weight' .*inference_mode.*deepcopy"):
            refused()
    PGD(steps=1)(copy.deepcopy(model), IMAGES, LABELS, 0.01)


def test_bundled_models_and_data_load_on_the_cpu_for_any_default_device() -> None:
    with torch.device("meta"):
        model = load_model("probekit:resnet20-fashion-mnist")
        data = load_data("fashion-mnist", model)
        found = analyze(model, data, "layer3.2.relu2", limit=8, progress=False)
    assert found["samples"].sizes["sample"] == 8
    assert next(model.module.parameters()).device.type == "cpu"


def test_the_callers_code_sees_the_default_device_of_the_caller() -> None:
    seen = []
    with torch.device("meta"), own_settings():
        seen.append(torch.empty(0).device.type)
        with caller_device():
            seen.append(torch.empty(0).device.type)
    assert seen == ["cpu", "meta"]


def test_random_states_and_switches_are_restored() -> None:
    def state() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
        )

    model = net()
    before = state()
    outcomes(model, IMAGES, LABELS)
    assert state() == before
