"""A model that modifies its input in place changes neither the user's images nor any result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from probekit.analysis.ablate import ablate
from probekit.analysis.analyze import analyze
from probekit.analysis.jacobian import jacobian_norm
from probekit.analysis.robustness.robustness import robustness
from probekit.analysis.saliency import unit_saliency
from probekit.capture.plan import plan
from probekit.capture.record import record
from probekit.errors import DataError
from probekit.metrics.gradient_variability import GradientVariability
from probekit.models.image_model import ImageModel
from probekit.models.inputs import copied
from probekit.perturbations.attacks.gradient import FGSM, PGD

IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 3


def subtract(x: Tensor) -> Tensor:
    return x.sub_(0.5).div_(0.2)


def multiply(x: Tensor) -> Tensor:
    x *= 2
    return x


def rectify(x: Tensor) -> Tensor:
    return functional.relu(x.sub_(0.5), inplace=True)


def write(x: Tensor) -> Tensor:
    x[:, 0] = 0.5 * x[:, 0] + 1
    return x


WRITES = {one.__name__: one for one in (subtract, multiply, rectify, write)}


class Net(nn.Module):
    """A network that modifies its input in place, or a copy of it for the expected values."""

    def __init__(self, first: Callable[[Tensor], Tensor], in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.head = nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Linear(40, 3)
        self.first, self.in_place = first, in_place

    def forward(self, x: Tensor) -> Any:
        x = self.first(x if self.in_place else x.clone())
        return self.head(self.act(self.conv(x)).mean((2, 3)))


def quiet(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return function(*args, progress=False, **options)


def outcomes(net: Any, images: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    data = (images, LABELS)
    found = quiet(analyze, net, data, batch_size=8)
    gradients = {
        method: quiet(
            analyze, net, data, metrics=GradientVariability(method=method, probes=4), batch_size=8
        )["units"]["gradient_norm_mean"].values
        for method in ("exact", "probes")
    }
    robust = quiet(
        robustness,
        net,
        data,
        ["fog", "contrast"],
        (1, 5),
        attacks=["fgsm", PGD(steps=2)],
        epsilons=[0.02],
        table=32,
    )
    return {
        "class_mean": found["units"]["class_mean"].values,
        "prediction": found["samples"]["prediction"].values,
        **gradients,
        "jacobian": quiet(jacobian_norm, net, data)["jacobian_norm"].values,
        "saliency": unit_saliency(net, images[:2], "act", 0).numpy(),
        "record": quiet(record, net, data)["activation"].values,
        "ablate": quiet(ablate, net, data, found["units"]["selectivity"], random=1)[
            "accuracy"
        ].values,
        "fgsm": FGSM()(net, images, LABELS, 0.02).numpy(),
        "pgd": PGD(steps=3)(net, images, LABELS, 0.02).numpy(),
        "corrupted": robust["robustness"]["accuracy"].values,
        "change": robust["units"]["corruption_change_size"].values,
        "attacked": robust["robustness"]["attack_accuracy"].values,
    }


@pytest.mark.filterwarnings("ignore::probekit.ProbekitWarning")
@pytest.mark.parametrize("name", WRITES)
def test_a_model_that_modifies_its_input_gives_the_numbers_of_one_that_does_not(
    name: str,
) -> None:
    images = IMAGES.clone()
    right = outcomes(Net(WRITES[name], in_place=False).eval(), images)
    found = outcomes(Net(WRITES[name], in_place=True).eval(), images)
    assert torch.equal(images, IMAGES)
    for number, value in right.items():
        np.testing.assert_allclose(found[number], value, rtol=1e-4, atol=1e-6, err_msg=number)


@pytest.mark.parametrize(
    "source",
    [
        lambda x: (x, LABELS),
        lambda x: [(x[i : i + 8], LABELS[i : i + 8]) for i in (0, 8, 16)],
        lambda x: TensorDataset(x, LABELS),
        lambda x: DataLoader(TensorDataset(x, LABELS), 8),
    ],
    ids=["tensors", "batches", "dataset", "loader"],
)
def test_images_of_every_source_are_unchanged(source: Any) -> None:
    images = IMAGES.clone()
    net = Net(subtract, in_place=True).eval()
    first, second = (
        quiet(analyze, net, source(images), batch_size=8)["units"]["class_mean"] for _ in range(2)
    )
    assert torch.equal(images, IMAGES)
    np.testing.assert_array_equal(first, second)


def test_images_are_unchanged_when_the_model_raises_afterwards() -> None:
    class Raises(Net):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)
            raise ZeroDivisionError

    images = IMAGES.clone()
    with pytest.raises(ZeroDivisionError):
        plan(Raises(subtract, in_place=True), images)
    assert torch.equal(images, IMAGES)


def test_an_image_model_may_modify_its_input() -> None:
    images = IMAGES.clone()
    model = ImageModel(Net(subtract, in_place=True).eval(), input_size=(3, 8, 8))
    quiet(analyze, model, (images, LABELS))
    assert torch.equal(images, IMAGES)


def test_a_copy_preserves_types_gradients_and_non_tensors() -> None:
    leaf = torch.ones(2, requires_grad=True)
    twin = copied({"x": [leaf, 3], "mask": (None,)})
    assert twin["mask"] == (None,)
    assert twin["x"][1] == 3
    twin["x"][0].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [1, 1]


class ByKeyword(nn.Module):
    """Takes its images by keyword only, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.act, self.head = nn.ReLU(), nn.Linear(3, 3)

    def forward(self, *, labels: Any = None, pixel_values: Any = None) -> dict[str, Tensor]:
        return {"logits": self.head(self.act(pixel_values - 0.5).mean((2, 3)))}


class ByMapping(ByKeyword):
    """Takes one mapping, and returns a dict."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(pixel_values=batch["pixel_values"])


@pytest.mark.filterwarnings("ignore:the model is right on")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("make", [ByKeyword, ByMapping])
def test_images_are_passed_by_the_names_of_the_arguments(
    make: type[ByKeyword], wrapped: bool
) -> None:
    network = make().eval()
    model: Any = ImageModel(network, input_size=(3, 8, 8)) if wrapped else network
    batch = {"pixel_values": IMAGES, "labels": LABELS}
    found = record(model, [batch], "act", progress=False).activation.values
    assert found == pytest.approx((IMAGES - 0.5).relu().mean((2, 3)).numpy(), abs=1e-6)
    right = ByKeyword().eval()(pixel_values=IMAGES)["logits"].argmax(1) == LABELS
    result = quiet(analyze, model, [batch])
    assert float(result["accuracy"]) == pytest.approx(float(right.float().mean()))
    if wrapped:
        attacked = quiet(robustness, model, (IMAGES, LABELS), None, attacks=FGSM(), epsilons=[0.1])
        assert attacked["robustness"]["attack_accuracy"].notnull().all()


def test_a_model_with_other_arguments_is_refused_in_one_sentence() -> None:
    class Tokens(nn.Module):
        def forward(self, batch: Any, *, more: Any) -> Any:
            return batch

    with pytest.raises(DataError, match=r"fails on images of the shape.*argument: 'more'"):
        analyze(Tokens(), (IMAGES, LABELS), progress=False)


def test_a_mapping_of_named_inputs_is_given_as_a_whole() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = self.act(batch["input_values"] * batch["attention_mask"])
            return found

    values, mask = torch.randn(24, 5), (torch.arange(5) < 3).float().expand(24, 5)
    batch = {"input_values": values, "attention_mask": mask, "labels": LABELS}
    found = record(Tokens(), [batch], "act", progress=False).activation.values
    assert found == pytest.approx((values * mask).relu().numpy())


def test_an_image_under_another_name_is_refused_in_one_sentence() -> None:
    class Named(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return functional.relu(batch["picture"])

    with pytest.raises(DataError, match=r"'picture'; give images.*under one of image, images"):
        analyze(Named(), (IMAGES, LABELS), progress=False)

    class Unannotated(nn.Module):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            return functional.relu(batch["image"])

    named = [({"image": IMAGES}, LABELS)]
    for data in ((IMAGES, LABELS), named):
        with pytest.raises(DataError, match=r"annotated so, as in forward\(self, batch: dict\)"):
            analyze(Unannotated(), data, progress=False)
