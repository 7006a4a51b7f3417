"""Real architectures with random weights: recorded values are compared with clones from plain hooks.

The unit axis of the reference comes from each architecture's source, not from probekit. Maps have
units on axis 1, except in the layers that a case lists as units-last. Sequences of tokens have units
on the last axis.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probekit.capture.plan import plan, scout_layers
from probekit.capture.recorder import Recorder

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ACTIVATIONS = {
    "ReLU", "ReLU6", "GELU", "SiLU", "Hardswish", "Hardsigmoid", "Sigmoid", "Tanh", "QuickGELU",
}  # fmt: skip
SAMPLES = 3


@dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        name: The name in timm, or in torchvision after `tv:`.
        size: Height and width of the images.
        blocks: Additional layers to compare besides the activation functions.
        last: The four-dimensional outputs with units on the last axis.
        first: The three-dimensional outputs with units on axis 1.
        batchless: Modules whose input is not a batch of samples.
        relus: The layers that are `F.relu` of a block's output, by name, after all modules.
        options: Options of the constructor.
    """

    name: str
    size: int = 48
    blocks: tuple[str, ...] = ()
    last: str = "$^"
    first: str = "$^"
    batchless: str = "$^"
    relus: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        if self.name.startswith("tv:vgg"):
            return narrow_vgg(self.name.removeprefix("tv:"))
        make: Callable[..., nn.Module] = timm.create_model
        options = {"num_classes": 7, **self.options}
        if self.name.startswith("tv:"):
            make = torchvision.models.get_model
            options["weights"] = None
        return make(self.name.removeprefix("tv:"), **options).eval()

    def pooled(self, name: str, output: Tensor) -> Tensor:
        """The mean over positions computed by hand, combining each sample's windows."""
        output = output.double()
        last = re.search(self.last if output.ndim == 4 else "", name) is not None
        if output.ndim == 3 and re.search(self.first, name):
            last = False
        rows = output if last or output.ndim == 2 else output.movedim(1, -1)
        return rows.reshape(SAMPLES, -1, rows.shape[-1]).mean(1)


def narrow_vgg(name: str) -> nn.Module:
    """A VGG with 64 units in its linear layers, which otherwise take most of the time."""
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None, init_weights=False)
    for at, units in (("0", (512 * 49, 64)), ("3", (64, 64)), ("6", (64, 7))):
        net.classifier._modules[at] = nn.Linear(*units)
    net.features.to_empty(device="cpu")
    for module in net.features.children():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    return net.eval()


def shallow(net: nn.Module) -> nn.Module:
    """Removes the blocks of a stage that equal the two blocks before them, which add only time."""
    for stage in list(net.modules()):
        if isinstance(stage, nn.Sequential):
            kinds = {name: kind(block) for name, block in stage.named_children()}
            names = list(kinds)
            for one, two, name in zip(names, names[1:], names[2:], strict=False):
                if kinds[one] == kinds[two] == kinds[name] and kinds[name][1]:
                    del stage._modules[name]
    return net


def kind(block: nn.Module) -> tuple[list[type], list[torch.Size]]:
    """What equal blocks have in common: their modules and the shapes of their weights."""
    modules = [type(module) for module in block.modules()]
    return modules, [value.shape for value in block.state_dict().values()]


def sized(size: int, **options: Any) -> dict[str, Any]:
    return {"size": size, "options": {"img_size": size, **options}}


VIT = ("patch_embed", "blocks.0", "blocks.0.attn", "blocks.0.mlp", "norm")
STAGES = ("layer1", "layer2.0", "layer4")
CASES = [
    Case("resnet18", blocks=(*STAGES, "conv1", "bn1", "maxpool")),
    Case("tv:resnet18", blocks=STAGES),
    Case("tv:resnet50", blocks=STAGES),
    Case("resnet26d", blocks=STAGES),
    Case("seresnet18", blocks=STAGES),
    Case("skresnet18", blocks=STAGES),
    Case("res2net50_26w_4s", blocks=STAGES),
    Case("resnetv2_50", blocks=("stages.0", "stages.3.blocks.0", "norm")),
    Case("tv:wide_resnet50_2", 32, STAGES),
    Case("tv:vgg11", 32, ("features", "features.0")),
    Case("tv:vgg11_bn", 32, ("features", "features.1")),
    Case(
        "tv:densenet121",
        blocks=("features.denseblock1", "features.transition2", "features"),
        relus={"relu": "features"},
    ),
    Case(
        "densenet121", blocks=("features.denseblock1", "features.transition2", "features"),
        options={"block_config": (2, 3, 2, 2)},
    ),
    Case("inception_v4", 96, ("features.3", "features.10", "features")),
    Case("tv:mobilenet_v2", blocks=("features.1", "features.5.conv", "features")),
    Case("mobilenetv2_035", blocks=("blocks.0", "blocks.2.0", "conv_head")),
    Case("mobilenetv3_small_050", blocks=("blocks.0", "blocks.1.0", "blocks.0.0.se")),
    Case("tv:mobilenet_v3_small", blocks=("features.1", "features.4.block.2", "avgpool")),
    Case("efficientnet_b0", blocks=("blocks.0", "blocks.2.0.se", "conv_head")),
    Case("tv:efficientnet_b0", blocks=("features.1", "features.2.0.block.2")),
    Case("tf_efficientnet_lite0", blocks=("blocks.0", "blocks.3.1")),
    Case("regnetx_002", blocks=("stem", "s1", "s4.b1")),
    Case("regnety_002", blocks=("stem", "s1", "s4.b1.se")),
    Case("tv:regnet_y_400mf", blocks=("stem", "trunk_output.block1")),
    Case("convnext_atto", blocks=("stem", "stages.0", "stages.1.blocks.0.mlp")),
    Case("convnextv2_atto", blocks=("stem", "stages.0", "stages.2.blocks.0")),
    Case(
        "tv:convnext_tiny",
        blocks=("features.0", "features.1.0", "features.1.0.block.1", "features.1.0.block.2"),
        last=r"block\.[1-5]$",
    ),
    Case("tv:squeezenet1_1", blocks=("features.3", "features.3.squeeze")),
    Case("tv:shufflenet_v2_x0_5", blocks=("stage2", "stage2.0.branch1", "conv5")),
    Case("tv:mnasnet0_5", blocks=("layers.8", "layers.9.0.layers.3")),
    Case("ghostnet_050", blocks=("blocks.0", "blocks.3.0")),
    Case("repvgg_a0", blocks=("stem", "stages.1")),
    Case("nfnet_l0", blocks=("stem", "stages.0", "final_conv")),
    Case("convmixer_768_32", blocks=("stem", "blocks.0", "blocks.1.0")),
    Case("poolformer_s12", blocks=("stages.0", "stages.1.blocks.0.mlp")),
    Case("eca_resnet33ts", blocks=("stages.0", "stages.1.0.conv1_1x1"), first=r"attn\.gate$"),
    Case("vit_tiny_patch16_224", blocks=VIT, **sized(64, depth=3)),
    Case("vit_small_patch16_dinov3", blocks=VIT, last="^patch_embed$", **sized(64, depth=3)),
    Case("deit_tiny_distilled_patch16_224", blocks=VIT, **sized(64, depth=3)),
    Case("beit_base_patch16_224", blocks=VIT, **sized(64, depth=2)),
    Case("eva02_tiny_patch14_224", blocks=VIT, **sized(56, depth=3)),
    Case("cait_xxs24_224", blocks=("patch_embed", "blocks.0", "norm"), **sized(64, depth=4)),
    Case(
        "xcit_nano_12_p16_224",
        blocks=("blocks.0", "cls_attn_blocks.0"),
        **sized(64, depth=4),
    ),
    Case("pit_ti_distilled_224", 224, ("transformers.0.blocks.0", "transformers.1.pool.conv")),
    Case(
        "tv:vit_b_32",
        64,
        ("conv_proj", "encoder.ln", "encoder.layers.encoder_layer_0.self_attention"),
        options={"image_size": 64},
    ),
    Case(
        "swin_tiny_patch4_window7_224",
        blocks=("patch_embed", "layers.0", "layers.1.downsample", "layers.0.blocks.1.attn.qkv",
                "layers.0.blocks.1.attn", "layers.3.blocks.0", "norm"),
        last=r"^(patch_embed|layers\.|norm)",
        **sized(112),
    ),
    Case(
        "tv:swin_t",
        blocks=("features.0", "features.1", "features.2.norm", "features.5.0.attn", "norm", "permute"),
        last=r"^(features|norm)",
    ),
    Case(
        "tv:swin_v2_t",
        blocks=("features.0", "features.1", "features.2.norm", "features.5.0.attn"),
        last=r"^(features|norm)",
        batchless="cpb_mlp",
    ),
    Case("mixer_s32_224", blocks=("stem", "blocks.0", "blocks.0.norm1"), **sized(64)),
    Case("gmlp_s16_224", blocks=("stem", "blocks.0", "blocks.0.mlp_channels.fc1"), **sized(64)),
    Case(
        "maxvit_nano_rw_256",
        blocks=("stem", "stages.0", "stages.1.blocks.0.conv", "stages.1.blocks.0.attn_block",
                "stages.1.blocks.0.attn_grid.attn.qkv", "stages.1.blocks.0.attn_grid.mlp"),
        last=r"attn_(block|grid)",
        **sized(64),
    ),
    Case(
        "coatnet_nano_rw_224",
        blocks=("stem", "stages.0", "stages.1.blocks.0", "stages.2.blocks.1", "stages.3"),
        **sized(64),
    ),
    Case("mobilevit_xxs", blocks=("stages.2", "stages.2.1.transformer.0.mlp.fc1", "stages.4")),
    Case(
        "edgenext_xx_small",
        blocks=("stages.0", "stages.1.blocks.1", "stages.0.blocks.0.mlp"),
        last=r"blocks\.\d+\.(norm|mlp)",
    ),
    Case("levit_128s", 224, ("stem", "stages.0", "stages.1.blocks.0.mlp.ln1")),
]  # fmt: skip


def observe(case: Case, net: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A clone of every tensor that each module call returned, and the module's type."""
    outputs: dict[str, Tensor] = {}
    types: dict[str, str] = {}
    calls: Counter[str] = Counter()
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            site = f"{name}_{calls[name]}" if calls[name] else name
            calls[name] += 1
            activation = type(module).__name__ in ACTIVATIONS
            if (activation and not re.search(case.batchless, name)) or name in case.blocks:
                outputs[site] = output.clone()
                types[site] = type(module).__name__

        return hook

    for name, module in net.named_modules():
        handles.append(module.register_forward_hook(watch(name)))
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return outputs, types


def state(net: nn.Module) -> list[Any]:
    return [
        (len(one._forward_hooks), len(one._forward_pre_hooks), one.training, sorted(vars(one)))
        for one in net.modules()
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recorded_layers_equal_plain_hook_outputs(case: Case) -> None:
    net = shallow(case.build())
    before = state(net)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(SAMPLES, 3, case.size, case.size)
    reference, types = observe(case, net, images)
    assert set(case.blocks) <= reference.keys(), "the table names a layer that is not called"
    default = plan(net, images, verify=True)
    assert default["values"].all()
    assert default["complete"].all()
    assert not default.attrs["missing"]
    activations = [site for site, kind in types.items() if kind in ACTIVATIONS]
    if "squeezenet" in case.name:
        activations.remove("classifier.2")
    activations += case.relus
    reference |= {name: reference[block].relu() for name, block in case.relus.items()}
    assert default["layer"].tolist() == activations
    with torch.no_grad(), Recorder(net, sorted(reference)) as recorder:
        for _ in range(2):
            net(images)
            assert recorder.activations.keys() == reference.keys()
            check(case, recorder.activations, reference)
    assert state(net) == before
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name]), name


def check(case: Case, found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    for name, values in found.items():
        expected = case.pooled(name, reference[name])
        assert values.shape == expected.shape, name
        scale = float(reference[name].abs().max()) + 1e-12
        worst = float((values.double() - expected).abs().max()) / scale
        assert worst < 2e-6, f"{name} differs by {worst:.1e} of its largest value"


def test_enough_architectures_of_all_large_families_are_compared() -> None:
    names = " ".join(case.name for case in CASES)
    families = (
        "resnet vgg densenet inception mobilenet efficientnet regnet convnext vit_ deit swin beit "
        "eva02 mixer maxvit coatnet"
    )
    assert all(family in names for family in families.split())
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize(("name", "layers"), [("inception_v3", 94), ("googlenet", 57)])
def test_functions_of_torchvision_are_layers(name: str, layers: int) -> None:
    net = torchvision.models.get_model(name, weights=None, init_weights=False).eval()
    convolutions: dict[str, Tensor] = {}
    for part, module in net.named_modules():
        if type(module).__name__ == "BasicConv2d":
            module.register_forward_hook(
                lambda module, args, output, part=part: convolutions.update({part: output.clone()})
            )
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad(), Recorder(net) as recorder:
        for _ in range(2):
            convolutions.clear()
            net(images)
            found = recorder.activations
            assert list(found) == [f"{part}.relu" for part in convolutions]
            for part, output in convolutions.items():
                torch.testing.assert_close(found[f"{part}.relu"], output.mean((2, 3)))
    assert len(found) == layers


@pytest.mark.parametrize(
    ("name", "layers", "first"),
    [
        ("tv:densenet121", 121, "features.relu0"),
        ("resnetv2_50d_frn", 51, "stem.norm1.maximum"),
        ("resnetv2_50d_evos", 51, "stem.norm1"),
    ],
)
def test_functions_outside_modules_and_in_norms_are_layers(
    name: str, layers: int, first: str
) -> None:
    found, _ = scout_layers(Case(name).build(), torch.rand(2, 3, 64, 64))
    assert (len(found), found[0].name) == (layers, first)
