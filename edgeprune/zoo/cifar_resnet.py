"""CIFAR ResNets of depth 6n + 2 with basic blocks, in the forms in which public checkpoints come.

Three stages of n blocks, `width`, 2 * width and 4 * width channels wide. The forms differ in the names of their modules
(which become the checkpoint's keys) and in the shortcut where a stage starts:

| form | module names | shortcut |
|---|---|---|
| layer | layer1.0.conv1, bn1, linear | option A: every second pixel, zero channels before and after |
| stage | stage_1.0.conv_a, bn_a, classifier | option A: average pool of kernel 1 and stride 2, zero channels after |
| projection | as layer, and layer2.0.shortcut.0, .1 | option B: 1x1 convolution of stride 2 and BatchNorm |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Names:
    """What a form calls its modules."""

    conv: str
    bn: str
    stage: str
    """Prefix of the stages' names; 1, 2, 3 follows."""
    block: tuple[str, str, str, str]
    """First convolution and BatchNorm of a block, then the second ones."""
    linear: str


LAYER_NAMES = Names("conv1", "bn1", "layer", ("conv1", "bn1", "conv2", "bn2"), "linear")
STAGE_NAMES = Names("conv_1_3x3", "bn_1", "stage_", ("conv_a", "bn_a", "conv_b", "bn_b"), "classifier")


def padded_both_sides(x: Tensor, extra: int) -> Tensor:
    """(N, C, H, W) -> (N, C + extra, H/2, W/2): every second pixel, half of the zero channels on each side."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2))


def padded_after(x: Tensor, extra: int) -> Tensor:
    """(N, C, H, W) -> (N, C + extra, H/2, W/2): every second pixel, the zero channels at the end."""
    return F.pad(F.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 0, extra))


@dataclass(frozen=True)
class Form:
    """Module names, and the parameter-free shortcut; None for a projection."""

    names: Names
    shortcut: Callable[[Tensor, int], Tensor] | None


FORMS = {
    "": Form(LAYER_NAMES, padded_both_sides),
    "-stage": Form(STAGE_NAMES, padded_after),
    "-b": Form(LAYER_NAMES, None),
}
"""Suffix of the architecture's name -> form."""


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), both convolutions 3x3."""

    def __init__(self, form: Form, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.form = form
        self.extra = channels_out - channels_in
        conv_a, bn_a, conv_b, bn_b = form.names.block
        self.add_module(conv_a, nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False))
        self.add_module(bn_a, nn.BatchNorm2d(channels_out))
        self.add_module(conv_b, nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False))
        self.add_module(bn_b, nn.BatchNorm2d(channels_out))
        self.changes_shape = stride != 1 or self.extra > 0
        if self.changes_shape and form.shortcut is None:
            self.add_module(
                "shortcut",
                nn.Sequential(
                    nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
                ),
            )

    def forward(self, x: Tensor) -> Tensor:
        conv_a, bn_a, conv_b, bn_b = (getattr(self, name) for name in self.form.names.block)
        y = F.relu(bn_a(conv_a(x)))
        y = bn_b(conv_b(y))
        return F.relu(y + self._skip(x))

    def _skip(self, x: Tensor) -> Tensor:
        if not self.changes_shape:
            return x
        if self.form.shortcut is None:
            return self.get_submodule("shortcut")(x)  # type: ignore[no-any-return]
        return self.form.shortcut(x, self.extra)


class CifarResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes); made for 32x32, works on any size."""

    def __init__(self, depth: int, form: Form, *, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the depth must be 6n + 2 with n >= 1, got {depth}")
        super().__init__()
        names = self.names = form.names
        self.add_module(names.conv, nn.Conv2d(in_channels, width, 3, 1, 1, bias=False))
        self.add_module(names.bn, nn.BatchNorm2d(width))
        channels = width
        for number, channels_out in enumerate((width, 2 * width, 4 * width), start=1):
            blocks = []
            for index in range((depth - 2) // 6):
                blocks.append(BasicBlock(form, channels, channels_out, 2 if number > 1 and index == 0 else 1))
                channels = channels_out
            self.add_module(f"{names.stage}{number}", nn.Sequential(*blocks))
        self.add_module(names.linear, nn.Linear(channels, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        names = self.names
        x = F.relu(getattr(self, names.bn)(getattr(self, names.conv)(x)))  # (N, width, H, W)
        for number in (1, 2, 3):
            x = getattr(self, f"{names.stage}{number}")(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)  # (N, 4 * width)
        return getattr(self, names.linear)(x)  # type: ignore[no-any-return]
