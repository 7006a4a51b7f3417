"""Models and data of several kinds, and mistakes that are reported before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probekit as pk
from probekit.analysis.robustness.robustness import robustness
from probekit.errors import DataError, LayerError, ModelError, OptionError
from probekit.models.image_model import ImageModel
from robustness_by_hand import Data


def test_the_model_is_restored(trained: ImageModel, images: Data) -> None:
    module = trained.module.train()
    module[1].eval()
    module[3].weight.requires_grad_(False)
    before = {name: values.clone() for name, values in module.state_dict().items()}
    robustness(trained, images, "fog", 1, "fgsm", 0.01, progress=False)
    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())
    assert [part.training for part in module] == [True, False, *[True] * 7]
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    assert wanted == [True, True, True, True, False, True, True, True, True, True]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_plain_module_and_a_loader_are_accepted(trained: ImageModel, images: Data) -> None:
    loader = DataLoader(TensorDataset(*images), batch_size=10)
    found = robustness(trained.module, loader, "fog", 1, progress=False)
    clean = pk.analyze(trained.module, loader, progress=False)
    np.testing.assert_array_equal(found["units"]["selectivity"], clean["units"]["selectivity"])


class Detached(nn.Module):
    """Logits that autograd cannot follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images.detach())
        return logits.detach()


REFUSED = [
    ({"corruptions": "fgo"}, OptionError, "close matches: fog"),
    ({"corruptions": ["fog", "no"]}, OptionError, "'no'"),
    ({"corruptions": None}, OptionError, "neither corruptions nor attacks"),
    ({"severities": 6}, OptionError, "severity must be .* not 6"),
    ({"severities": ()}, OptionError, "severities must be one or more"),
    ({"attacks": "fgms"}, OptionError, "close matches: fgsm"),
    ({"attacks": ["fgsm", "fgsm"]}, OptionError, "twice"),
    ({"attacks": "fgsm", "epsilons": 8}, OptionError, "8/255"),
    ({"attacks": "fgsm", "epsilons": {"pgd": 0.1}}, OptionError, "no epsilons are given"),
    ({"attacks": "fgsm", "epsilons": {"fgsm": 0.1, "pg": 0.1}}, OptionError, "'pg'"),
    ({"layers": "8.no"}, LayerError, "8.no"),
    ({"memory": 4431}, OptionError, "memory=4431"),
    ({"reference": 3}, OptionError, "int"),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSED)
def test_mistakes_are_reported_before_anything_runs(
    options: dict[str, Any],
    error: type[Exception],
    words: str,
    trained: ImageModel,
    images: Data,
    tmp_path: Any,
) -> None:
    given = {"corruptions": "fog", "severities": 1} | options
    with pytest.raises(error, match=words.replace("(", r"\(")) as caught:
        robustness(trained, images, **given, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:images lie from:probekit.errors.ProbekitWarning")
@pytest.mark.parametrize(
    ("scale", "shift", "words"), [(255, 0, "divide"), (1, -0.5, "normalization")]
)
@pytest.mark.parametrize("options", [{"corruptions": "fog"}, {"attacks": "fgsm"}])
def test_images_out_of_range_are_refused(
    scale: float, shift: float, words: str, options: Any, net: nn.Module, images: Data
) -> None:
    data = [(images[0] * scale + shift, images[1])]
    with pytest.raises(DataError, match=words):
        robustness(net.eval(), data, **{"corruptions": None, **options}, progress=False)


def test_bytes_are_accepted_by_an_image_model_and_refused_for_a_module(
    trained: ImageModel, images: Data
) -> None:
    pixels = (images[0] * 255).to(torch.uint8)
    found = robustness(trained, [(pixels, images[1])], "fog", 1, progress=False)
    expected = robustness(trained, [(pixels / 255, images[1])], "fog", 1, progress=False)
    xr.testing.assert_equal(found["robustness"].to_dataset(), expected["robustness"].to_dataset())
    with pytest.raises(DataError, match=r"uint8.*\.float\(\) / 255"):
        robustness(trained.module, [(pixels, images[1])], "fog", progress=False)


def test_a_model_without_gradients_cannot_be_attacked(trained: ImageModel, images: Data) -> None:
    model = ImageModel(Detached(trained.module), (0.3,), (0.5,), (1, 32, 32))
    with pytest.raises(ModelError, match="no gradient"):
        robustness(model, images, None, attacks="fgsm", progress=False)
    assert robustness(model, images, "fog", 1, progress=False)["robustness"]["accuracy"].size == 1


def test_data_that_can_be_iterated_only_once_is_refused(trained: ImageModel, images: Data) -> None:
    with pytest.raises(DataError, match="once"):
        robustness(trained, iter([images]), "fog", progress=False)


def test_a_loader_that_shuffles_gives_the_same_images_under_every_condition(
    trained: ImageModel, images: Data
) -> None:
    loader = DataLoader(TensorDataset(*images), batch_size=10, shuffle=True)
    found = robustness(trained, loader, "fog", 1, progress=False)
    expected = robustness(trained, images, "fog", 1, batch_size=10, progress=False)
    xr.testing.assert_allclose(found["layers"].to_dataset(), expected["layers"].to_dataset())


def test_labels_that_do_not_match_the_model_are_refused(trained: ImageModel, images: Data) -> None:
    with pytest.raises(DataError, match="label 3 is beyond the model's 3 outputs"):
        robustness(trained, [(images[0], images[1] + 1)], "fog", 1, progress=False)


def test_an_output_that_is_not_logits_is_refused(trained: ImageModel, images: Data) -> None:
    with pytest.raises(ModelError, match="logits"):
        robustness(trained.module[:5], images, "fog", 1, layers=["2"], progress=False)


class Shrinking:
    """An iterable that loses its last batch after two passes."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        for _ in range(4 if self.passes < 3 else 3):
            yield (
                torch.linspace(0, 1, 10).view(10, 1, 1, 1).expand(10, 1, 32, 32),
                torch.arange(10) % 2,
            )


def test_data_that_loses_samples_in_a_later_pass_is_refused() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(3600, 2)
    )
    with pytest.raises(DataError, match=r"Shrinking yielded 30 samples for .* and 40 before"):
        pk.robustness(net, Shrinking(), ["contrast", "fog"], 1, progress=False)
