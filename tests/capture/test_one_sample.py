"""Models that take one sample at a time, or assemble their batch from single images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import probekit as pk
from probekit.errors import LayerError, ModelError

X = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 2


class Small(nn.Module):
    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.head = nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Linear(40, 2)
        self.prepare = prepare

    def features(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(self.prepare(x)))


def asserted(x: Tensor) -> Tensor:
    assert len(x) == 1, "one image, please"
    return x


def brightness_read(x: Tensor) -> Tensor:
    return x / float(x.mean((1, 2, 3)).clamp(min=0.1))


def flattened(x: Tensor) -> Tensor:
    return x.view(1, 3, 8, 8)


def each(x: Tensor) -> Tensor:
    return x / x.mean((1, 2, 3), keepdim=True).clamp(min=0.1)


ONE = pytest.mark.parametrize(
    ("prepare", "alike"),
    [(asserted, torch.clone), (flattened, torch.clone), (brightness_read, each)],
)


@ONE
def test_a_model_of_one_sample_is_recorded_with_batch_size_1(
    prepare: Callable[[Tensor], Tensor], alike: Callable[[Tensor], Tensor]
) -> None:
    net = Small(prepare).eval()
    recording = pk.record(net, (X, Y), batch_size=1, progress=False)
    with torch.no_grad():
        expected = net.features(alike(X))
    np.testing.assert_allclose(recording["activation"].values, expected, rtol=1e-4, atol=1e-6)
    assert pk.plan(net, X[:1])["units"].tolist() == [40]


@ONE
def test_a_model_of_one_sample_explains_its_failure_for_larger_batches(
    prepare: Callable[[Tensor], Tensor], alike: Callable[[Tensor], Tensor]
) -> None:
    net = Small(prepare).eval()
    with pytest.raises(ModelError, match=r"runs on one sample and fails on 2 .*use batch_size=1"):
        pk.record(net, (X, Y), batch_size=4, progress=False)
    with pytest.raises(ModelError, match=r"plan with one sample"):
        pk.plan(net, X[:2])


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
@pytest.mark.parametrize("method", ["exact", "auto"])
def test_gradients_of_a_model_of_one_sample(method: Any) -> None:
    net, alike = Small(asserted).eval(), Small(torch.clone).eval()
    found, expected = (
        pk.analyze(
            one,
            (X, Y),
            metrics=[pk.GradientVariability(method=method, probes=4)],
            batch_size=size,
            progress=False,
        )["units"]["gradient_norm_mean"].values
        for one, size in ((net, 1), (alike, 6))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    if method == "exact":
        images = X.clone().requires_grad_()
        pooled = alike.features(images)
        norms = [
            torch.autograd.grad(unit.sum(), images, retain_graph=True)[0].flatten(1).norm(dim=1)
            for unit in pooled.T
        ]
        np.testing.assert_allclose(found, torch.stack(norms).mean(1).numpy(), rtol=1e-4)


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_robustness_of_a_model_of_one_sample() -> None:
    options: dict[str, Any] = {"table": 32, "dimensionality": False, "progress": False}
    accuracy = [
        pk.robustness(Small(prepare).eval(), (X, Y), ["contrast"], (5,), batch_size=size, **options)
        for prepare, size in ((asserted, 1), (torch.clone, 6))
    ]
    np.testing.assert_array_equal(*(one["robustness"]["accuracy"].values for one in accuracy))


def test_gradients_of_single_samples_that_depend_on_the_batch_are_refused() -> None:
    class Mixing(Small):
        def features(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.relu(x - x.mean(0, keepdim=True) / 2).mean((2, 3))

    metric = pk.GradientVariability(method="exact")
    with (
        pytest.warns(pk.ProbekitWarning, match="depend on the other samples"),
        pytest.raises(ModelError, match="depend on the other samples of its batch"),
    ):
        pk.analyze(
            Mixing(torch.clone).eval(), (X, Y), metrics=[metric], batch_size=1, progress=False
        )


class Detector(nn.Module):
    """Pads images to one size in a batch of its own, and returns a list of boxes, as torchvision does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.boxes = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(5, 4)

    def forward(self, images: Any) -> list[dict[str, Tensor]]:
        height, width = images[0].shape[1:]
        batch = images[0].new_zeros(len(images), 3, height + 2, width + 2)
        for padded, image in zip(batch, images, strict=True):
            padded[:, : image.shape[1], : image.shape[2]].copy_(image - image.mean())
        found = self.boxes(self.relu(self.conv(batch)).mean((2, 3)))
        return [{"boxes": box[box > 0]} for box in found]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_batch_assembled_from_single_images(size: int) -> None:
    net = Detector().eval()
    recording = pk.record(net, (X, Y), batch_size=size, progress=False)
    padded = torch.zeros(6, 3, 10, 10)
    padded[:, :, :8, :8] = X - X.mean((1, 2, 3), keepdim=True)
    with torch.no_grad():
        expected = net.relu(net.conv(padded)).mean((2, 3))
    np.testing.assert_allclose(recording["activation"].values, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("error::probekit.errors.ProbekitWarning")
def test_verification_does_not_doubt_what_the_plan_has_settled() -> None:
    table = pk.plan(Detector().eval(), X[:2], verify=True)
    assert table[["values", "unit_axis_certain", "complete"]].all(axis=None)
    assert not table["axis"].str.contains("uncertain").any()
    assert len(table.attrs["image_sizes"]) == 2


class Loop(Small):
    """Runs on each image of a batch in turn."""

    def forward(self, images: Any) -> Tensor:
        return torch.cat([super(Loop, self).forward(image[None]) for image in images])


def test_a_model_that_loops_over_images_is_recorded_with_batch_size_1() -> None:
    net = Loop(torch.clone).eval()
    with pytest.raises(LayerError, match="no selected layer has units"):
        pk.record(net, (X, Y), batch_size=4, progress=False)
    recording = pk.record(net, (X, Y), batch_size=1, progress=False)
    with torch.no_grad():
        expected = net.features(X)
    np.testing.assert_allclose(recording["activation"].values, expected, rtol=1e-4, atol=1e-6)


class RegionDetector(Detector):
    """Runs layers on regions, some of each image."""

    def forward(self, images: Any) -> list[dict[str, Tensor]]:
        maps = self.relu(self.conv(torch.stack(list(images))))
        corners = maps.mean((1, 2, 3)).sign().abs()  # of the same number of regions, here
        boxes = [torch.stack([0 * one, 0 * one, 4 * one, 4 * one]).repeat(2, 1) for one in corners]
        regions = torchvision.ops.roi_align(maps, boxes, 2).mean((2, 3))
        return [{"boxes": self.boxes(torch.tanh(regions))}]


def test_layers_of_regions_are_left_out_and_the_others_recorded() -> None:
    net = RegionDetector().eval()
    with pytest.warns(
        pk.ProbekitWarning, match=r"not recorded: tanh; 'tanh' has the shape \(4, 5\)"
    ):
        recording = pk.record(net, (X, Y), batch_size=4, progress=False)
    with torch.no_grad():
        expected = net.relu(net.conv(X)).mean((2, 3))
    np.testing.assert_allclose(recording["activation"].values, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:.*is deprecated")
@pytest.mark.parametrize(
    "convert", [torch.jit.script, lambda net: torch.jit.freeze(torch.jit.script(net))]
)
def test_torch_script_is_refused_in_one_sentence(convert: Callable[[nn.Module], nn.Module]) -> None:
    net = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval())
    with pytest.raises(ModelError, match=r"TorchScript.* pass the model that it was created from"):
        pk.record(net, (X, Y), progress=False)
