"""The public interface of the recorder: default layers, pauses, reuse, inputs and mistakes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fragile_network import Fragile, X, assert_same, snapshot
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ModelError, OptionError, ProbekitError, ProbekitWarning
from probekit.models.image_model import ImageModel


def test_the_default_is_every_activation_function_except_the_classifiers() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2), nn.Sigmoid()
    )
    with Recorder(net) as recorder:
        net(torch.rand(4, 3))
    assert list(recorder.activations) == ["1", "3"]


def test_the_activation_function_after_a_classifier_of_maps_is_excluded() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with Recorder(net) as recorder:
        net(X)
    assert list(recorder.activations) == ["1", "3"]
    net.num_classes = 3
    with Recorder(net) as recorder:
        net(X)
    assert list(recorder.activations) == ["1"]


class OwnHead(nn.Module):
    """A network with as many units as classes, whose head is no module of its own."""

    num_classes = 4

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.one, self.act = nn.Conv2d(1, 4, 3), nn.ReLU()
        self.two, self.last = nn.Conv2d(4, 4, 3), nn.GELU()
        self.weight, self.head = nn.Parameter(torch.rand(4, 4)), head

    def forward(self, x: Tensor) -> Tensor:
        features = self.last(self.two(self.act(self.one(x)))).mean((2, 3))
        return self.head(features, self.weight)


@pytest.mark.parametrize(
    ("head", "classifier"),
    [
        (lambda features, weight: features @ weight, False),
        (lambda features, weight: functional.linear(functional.normalize(features), weight), False),
        (lambda features, weight: -torch.cdist(features, weight), False),
        (lambda features, weight: -(features[:, None] - weight).square().sum(2), False),
        (lambda features, weight: {"logits": features @ weight.detach()}, False),
        (lambda features, weight: (features @ weight, features), False),
        (lambda features, weight: {"f": features, "logits": -torch.cdist(features, weight)}, False),
        (lambda features, weight: (functional.normalize(features) @ weight, features), False),
        (lambda features, weight: features, True),
        (lambda features, weight: {"logits": functional.dropout(features, 0.5, False)}, True),
    ],
)
def test_a_head_without_a_module_leaves_the_last_activation_function(
    head: Any, classifier: bool
) -> None:
    with Recorder(OwnHead(head)) as recorder:
        recorder(X)
    assert list(recorder.activations) == ["act"] + ([] if classifier else ["last"])


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("layers", [None, ["1", "3"]])
def test_a_layer_whose_module_is_replaced_is_reported(stop: bool, layers: list[str] | None) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.rand(4, 3)
    with Recorder(net, layers, stop=stop) as recorder:
        recorder(x)
        net[3] = nn.Identity()
        with pytest.warns(ProbekitWarning, match="'3' is missing, because its module '3' was repl"):
            recorder(x)
    assert list(recorder.activations) == ["1"]


@pytest.mark.parametrize("layers", [None, ["1", "3"]])
def test_a_module_replaced_before_the_first_pass_is_recorded(layers: list[str] | None) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.rand(4, 3)
    with torch.no_grad(), Recorder(net, layers) as recorder:
        net[3] = nn.GELU()
        net(x)
    assert list(recorder.activations) == ["1", "3"]
    torch.testing.assert_close(recorder.activations["3"], net[:4](x).detach())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_last_activation_function_of_a_headless_model_is_included() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    with Recorder(net) as recorder:
        net(X)
    assert list(recorder.activations) == ["1"]


def test_a_model_with_only_a_classifier_activation_has_no_default_layers() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())
    message = "no selected layer has units to record; '1' is the classifier's"
    with Recorder(net) as recorder, pytest.raises(LayerError, match=message):
        recorder(torch.rand(4, 3))
    with Recorder(net, ["1"]) as recorder:
        recorder(torch.rand(4, 3))
        assert list(recorder.activations) == ["1"]


def test_a_planned_recorder_records_the_same_values_in_its_first_pass() -> None:
    net = Fragile().eval()
    with Recorder(net, ["body.*"]) as first:
        first(X)
    with Recorder(net, first.layers) as second:
        hooked = sum(len(child._forward_hooks) for child in net.modules())
        second(X)
    assert hooked == len(first.layers) + 1
    for name, values in first.activations.items():
        torch.testing.assert_close(second.activations[name], values)


def test_passes_are_not_recorded_while_paused() -> None:
    net = Fragile().eval()
    with Recorder(net) as recorder:
        recorder(X)
        kept = recorder.activations
        recorder.paused = True
        recorder(X * 2)
        assert recorder.activations is kept
        recorder.paused = False
        recorder(X * 2)
        assert recorder.activations is not kept


def test_the_activations_remain_available_after_the_context() -> None:
    net = Fragile().eval()
    with Recorder(net) as recorder:
        recorder(X)
    kept = recorder.activations
    net(X * 2)
    assert recorder.activations is kept


def test_a_recorder_can_be_reused() -> None:
    net = Fragile().eval()
    recorder = Recorder(net)
    for _ in range(2):
        with recorder:
            recorder(X)
        assert list(recorder.activations) == ["body.2", "body.4"]


def test_an_image_model_is_recorded_on_normalized_images() -> None:
    net = Fragile().eval()
    model = ImageModel(net, (0.5,), (0.2,), (1, 8, 8))
    with Recorder(model, ["body.0"]) as recorder:
        model(X)
        found = recorder.activations["body.0"]
        recorder(X)
        torch.testing.assert_close(recorder.activations["body.0"], found)
    torch.testing.assert_close(found, net.body[0]((X - 0.5) / 0.2).mean((2, 3)).detach())


def test_the_input_may_be_a_keyword_argument_or_a_mapping() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.act(batch["pixels"]).mean((1, 2, 3))

    net = Mapped()
    with Recorder(net) as recorder:
        net(batch={"pixels": X})
        assert recorder.activations["act"].shape == (4, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"model": "resnet18"},
            ModelError,
            "a model must be a torch.nn.Module, not str; load one by its name with pk.load_model",
        ),
        ({"model": print}, ModelError, "a model must be a torch.nn.Module, not builtin_function"),
        (
            {"spatial": "max"},
            OptionError,
            "spatial must be 'mean', 'none' or a function, not 'max'",
        ),
        ({"tokens": "cls"}, OptionError, "tokens must be 'all', 'patch' or 'class', not 'cls'"),
        ({"layers": []}, LayerError, "layers is empty"),
        ({"layers": ["body.22"]}, LayerError, "'body.22'; close matches: body.2"),
    ],
)
def test_a_mistake_is_reported_before_any_hook_is_registered(
    options: dict[str, Any], error: type[ProbekitError], message: str
) -> None:
    net = Fragile()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        Recorder(**{"model": net, **options})
    assert_same(before, snapshot(net))


def test_planned_layers_and_layer_options_cannot_be_combined() -> None:
    net = Fragile()
    with Recorder(net, ["body.0"]) as recorder:
        recorder(X)
    with pytest.raises(OptionError, match="either planned layers or choices"):
        Recorder(net, [recorder.layers[0], "body.2"])


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("layers", [["0", "1"], None])
def test_hooks_set_after_the_recorder_count(prepend: bool, layers: Any) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten()), torch.randn(2, 3, 5, 5)
    with Recorder(net, layers) as recorder, torch.no_grad():
        for factor in (1, 3, 9):
            net(x)
            expected = net[0](x).relu() * factor
            torch.testing.assert_close(recorder.activations["1"], expected.mean((2, 3)))
            net[1].register_forward_hook(lambda module, args, out: out * 3, prepend=prepend)
    assert len(net[1]._forward_hooks) == 3


def test_another_thread_cannot_record_the_same_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    images = torch.randn(5, 3)

    def recorded(module: nn.Module) -> Tensor:
        with Recorder(module, "1") as recorder:
            recorder(images)
        return recorder.activations["1"]

    with ThreadPoolExecutor(1) as other, Recorder(model, "1"):
        with pytest.raises(LayerError, match="another thread is recording this model"):
            other.submit(recorded, model).result()
        expected = recorded(model)  # in the same thread
        assert torch.equal(other.submit(recorded, deepcopy(model)).result(), expected)
    with ThreadPoolExecutor(1) as other:
        assert torch.equal(other.submit(recorded, model).result(), expected)
