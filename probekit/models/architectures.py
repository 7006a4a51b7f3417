"""The networks of the papers for small images, built from plain torch modules.

Every nonlinearity is a separate module that is called once, so each has a name to record.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional


class CifarResNet(nn.Module):
    """ResNet for small images (He et al. 2016, section 4.2), of depth 6n + 2: a 3x3 stem and three stages."""

    def __init__(self, depth: int = 20, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56), not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(_PaddedBlock, 16, 16, blocks, stride=1)
        self.layer2 = _stage(_PaddedBlock, 16, 32, blocks, stride=2)
        self.layer3 = _stage(_PaddedBlock, 32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, classes)
        _initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        output: torch.Tensor = self.fc(x.mean((2, 3)))
        return output


class SmallVGG(nn.Module):
    """VGG16's convolutions with batch norm, and one hidden fully connected layer (512 units).

    Five stages of 3x3 convolutions, each followed by a 2x2 max-pool, reduce a 32 px image to one
    position. Smaller images work too, since the pools round up.
    """

    WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in self.WIDTHS:
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(512, 512)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(512, classes)
        _initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).mean((2, 3))
        output: torch.Tensor = self.fc(self.relu(self.hidden(x)))
        return output


class SmallResNet(nn.Module):
    """ResNet18 or ResNet50 for 64 px images: the ImageNet network without the max-pool after the stem.

    It is compatible with the weights of torchvision's networks of the same depth. With `pool=True` it has
    the max-pool too, and computes a quarter of the positions.
    """

    def __init__(
        self, depth: int = 18, classes: int = 200, channels: int = 3, pool: bool = False
    ) -> None:
        super().__init__()
        if depth not in (18, 50):
            raise ValueError(f"depth must be 18 or 50, not {depth}")
        block: type[_Block] | type[_Bottleneck] = _ProjectedBlock if depth == 18 else _Bottleneck
        counts = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if pool else nn.Identity()
        ends = [64, *(64 * 2**stage * block.expansion for stage in range(4))]
        self.layer1 = _stage(block, ends[0], 64, counts[0], stride=1)
        self.layer2 = _stage(block, ends[1], 128, counts[1], stride=2)
        self.layer3 = _stage(block, ends[2], 256, counts[2], stride=2)
        self.layer4 = _stage(block, ends[3], 512, counts[3], stride=2)
        self.fc = nn.Linear(ends[4], classes)
        _initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        output: torch.Tensor = self.fc(x.mean((2, 3)))
        return output


class _Block(nn.Module):
    """ResNet's block of two 3x3 convolutions; subclasses define the shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        output: torch.Tensor = self.relu2(self.bn2(self.conv2(x)) + shortcut)
        return output


class _PaddedBlock(_Block):
    """The shortcut of option A (He et al. 2016), without parameters: strides, and zero channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.stride = stride
        self.extra_channels = channels - channels_in

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1 and not self.extra_channels:
            return x
        before = self.extra_channels // 2
        after = self.extra_channels - before
        strided = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(strided, (0, 0, 0, 0, before, after))


class _ProjectedBlock(_Block):
    """The shortcut of option B: a 1x1 convolution if the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.downsample = _projection(channels_in, channels, stride)

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        shortcut: torch.Tensor = self.downsample(x)
        return shortcut


class _Bottleneck(nn.Module):
    """ResNet's block of 1x1, 3x3 and 1x1 convolutions, with the stride on the 3x3 one."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = _projection(channels_in, wide, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        output: torch.Tensor = self.relu3(self.bn3(self.conv3(x)) + shortcut)
        return output


def _stage(
    block: type[_Block] | type[_Bottleneck],
    channels_in: int,
    channels: int,
    count: int,
    stride: int,
) -> nn.Sequential:
    first = block(channels_in, channels, stride)
    wide = channels * block.expansion
    return nn.Sequential(first, *(block(wide, channels, 1) for _ in range(count - 1)))


def _projection(channels_in: int, channels: int, stride: int) -> nn.Module:
    """The shortcut of option B: a 1x1 convolution if the shape changes."""
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


def _initialize(network: nn.Module) -> None:
    """Initializes as ResNet does (He et al. 2015): normal, scaled by the fan-out of each convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 32, 44, 56)},
    "resnet18": partial(SmallResNet, 18),
    "resnet18-pool": partial(SmallResNet, 18, pool=True),
    "resnet50": partial(SmallResNet, 50),
    "vgg16": SmallVGG,
}

cifar_resnet = CifarResNet  # the name in the documentation
