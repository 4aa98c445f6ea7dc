"""DenseNets for CIFAR: three blocks in which every layer reads all channels before it and adds `growth` of its own.

| class | layer | between the blocks | module names |
|---|---|---|---|
| CifarDenseNet | one 3x3 convolution, growth 12 | 1x1 convolution that keeps the width, 2x2 average | conv1, \
dense1.0.bn1, dense1.0.conv1, trans1.bn1, trans1.conv1, bn, fc |
| CifarDenseNet86 | 1x1 convolution to 4 * growth, then 3x3; growth 8, 16, 32 | 2x2 average | features.init_conv, \
features.denseblock_1.denselayer_1.bn1, conv1, bn2, conv2, features.norm_last, classifier |

BatchNorm and ReLU stand before each convolution.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """(N, C, H, W) -> (N, C + growth, H, W): the input, then 3x3 convolution of its activation."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv1(F.relu(self.bn1(x)))), 1)


class DenseBottleneck(nn.Module):
    """(N, C, H, W) -> (N, C + growth, H, W), through 4 * growth channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return torch.cat((x, self.conv2(F.relu(self.bn2(y)))), 1)


class Transition(nn.Module):
    """(N, C, H, W) -> (N, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class CifarDenseNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes), H and W at least 4; depth 3n + 4, growth 12."""

    GROWTH = 12

    def __init__(self, depth: int, *, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        if depth < 7 or (depth - 4) % 3:
            raise ValueError(f"the depth must be 3n + 4 with n >= 1, got {depth}")
        super().__init__()
        layers, channels = (depth - 4) // 3, width
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        for number in (1, 2, 3):
            block = [DenseLayer(channels + i * self.GROWTH, self.GROWTH) for i in range(layers)]
            channels += layers * self.GROWTH
            self.add_module(f"dense{number}", nn.Sequential(*block))
            if number < 3:
                self.add_module(f"trans{number}", Transition(channels))
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name in ("dense1", "trans1", "dense2", "trans2", "dense3"):
            x = getattr(self, name)(x)
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1)
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


class CifarDenseNet86(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes), H and W at least 4; `layers` layers a block."""

    def __init__(self, *, layers: int = 14, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        channels = width
        features: OrderedDict[str, nn.Module] = OrderedDict()
        features["init_conv"] = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        for number, growth in enumerate((8, 16, 32), start=1):
            block = ((f"denselayer_{i + 1}", DenseBottleneck(channels + i * growth, growth)) for i in range(layers))
            features[f"denseblock_{number}"] = nn.Sequential(OrderedDict(block))
            channels += layers * growth
            if number < 3:
                features[f"transition_{number}"] = nn.AvgPool2d(2)
        features["norm_last"], features["relu_last"] = nn.BatchNorm2d(channels), nn.ReLU()
        self.features = nn.Sequential(features)
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
