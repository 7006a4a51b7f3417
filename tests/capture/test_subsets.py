import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vit_b_16

from probekit.capture.layers import Layer
from probekit.capture.plan import scout_layers
from probekit.capture.subsets import subset_of
from probekit.errors import LayerError, OptionError
from probekit.models.architectures import CifarResNet


def layers_of(model, *shape):
    return scout_layers(model, torch.rand(2, *shape))[0]


@pytest.fixture(scope="module")
def resnet20():
    return layers_of(CifarResNet(20), 3, 16, 16)


def names(layers):
    return [layer.name for layer in layers]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("first:3", ["relu", "layer1.0.relu1", "layer1.0.relu2"]),
        ("last:3", ["layer3.1.relu2", "layer3.2.relu1", "layer3.2.relu2"]),
        ("last:1", ["layer3.2.relu2"]),
    ],
)
def test_first_and_last_layers_follow_execution_order(resnet20, text, wanted):
    assert names(subset_of(text)(resnet20)) == wanted


def test_all_but_the_last_stage_of_resnets_matches_their_names(resnet20):
    for layers, stage in ((resnet20, "layer3"), (layers_of(resnet18(), 3, 64, 64), "layer4")):
        kept = subset_of("but-last-stage")(layers)
        assert names(kept) == [name for name in names(layers) if not name.startswith(stage)]
        assert 0 < len(kept) < len(layers)


def test_vector_layers_at_the_end_belong_to_the_last_stage():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip
    assert names(subset_of("but-last-stage")(layers_of(net, 3, 8, 8))) == ["1"]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))])
def test_a_model_with_one_stage_has_no_earlier_layers(model):
    with pytest.raises(LayerError, match="maps of one size"):
        subset_of("but-last-stage")(layers_of(model, 3))


@pytest.mark.slow
def test_a_transformer_is_one_stage():
    model = vit_b_16(image_size=32)
    with pytest.raises(LayerError, match="maps of one size"):
        subset_of("but-last-stage")(layers_of(model, 3, 32, 32))


def test_requesting_too_many_layers_is_an_error_that_lists_them(resnet20):
    with pytest.raises(LayerError, match=r"has 19 layers: relu, layer1\.0\.relu1"):
        subset_of("first:20")(resnet20)


@pytest.mark.parametrize("text", ["first:0", "last:-1", "first:", "last:two", "first:1.5"])
def test_an_invalid_number_is_refused(text):
    with pytest.raises(OptionError, match="needs a positive integer"):
        subset_of(text)


@pytest.mark.parametrize("layers", [None, "layer1.*", "first", ["first:3"], nn.ReLU, "!layer4.*"])
def test_other_selections_are_passed_to_the_recorder(layers):
    assert subset_of(layers) is None


def test_a_single_layer_is_first_and_last():
    one = Layer("relu", "relu", 0, "ReLU", (8,), unit_axis=1, units=8)
    assert subset_of("first:1")([one]) == subset_of("last:1")([one]) == [one]
