"""CIFAR ResNets of depth 9n + 2 with pre-activation bottlenecks (BatchNorm and ReLU before each convolution).

Three stages of n blocks; the 3x3 convolutions are `width`, 2 * width and 4 * width channels wide, the residual stream
four times as much. Where a stage starts, the shortcut is a 1x1 convolution of the raw stream without BatchNorm.
Module names: conv1, layer1.0.bn1, conv1, bn2, conv2, bn3, conv3, downsample.0, then bn and fc.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4


class PreActBottleneck(nn.Module):
    """conv3(act(conv2(act(conv1(act(x)))))) + shortcut(x), where act is BatchNorm and ReLU."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels_out = EXPANSION * width
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + self.downsample(x)  # type: ignore[no-any-return]


class CifarPreResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes); made for 32x32, works on any size."""

    def __init__(self, depth: int, *, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f"the depth must be 9n + 2 with n >= 1, got {depth}")
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        channels = width
        for number in (1, 2, 3):
            stage_width = width * 2 ** (number - 1)
            blocks = []
            for index in range((depth - 2) // 9):
                blocks.append(PreActBottleneck(channels, stage_width, 2 if number > 1 and index == 0 else 1))
                channels = EXPANSION * stage_width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)  # (N, width, H, W)
        for number in (1, 2, 3):
            x = getattr(self, f"layer{number}")(x)
        x = F.relu(self.bn(x))  # (N, 16 * width, H/4, W/4)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]
