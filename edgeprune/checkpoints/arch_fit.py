"""Which architecture a checkpoint is of: for errors that name the one to use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from edgeprune.zoo import ARCHS, AUXILIARY_KEYS, build

Shapes = Mapping[str, tuple[int, ...]]

_TORCHVISION = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d", "vgg16",
    "vgg16_bn", "vgg19_bn", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "googlenet", "squeezenet1_0", "alexnet",
)  # fmt: skip
"""The ones that people have: trying all of torchvision's takes too long for an error message."""


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a model's parameters and buffers, without BatchNorm's batch counters (which may be missing)."""
    return {key: tuple(v.shape) for key, v in model.state_dict().items() if not key.endswith("num_batches_tracked")}


def fitting_arch(shapes: Shapes) -> str:
    """The architecture that has exactly these tensors (batch counters and auxiliary classifiers aside), as --arch takes
    it; empty if none has."""
    wanted = {
        key: tuple(shape)
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked") and not key.startswith(AUXILIARY_KEYS)
    }
    convolutions = [shape for shape in wanted.values() if len(shape) == 4]
    if not convolutions:
        return ""
    for name in _candidates(len(convolutions)):
        with torch.device("meta"):
            model = build(name).model
            if set(shapes_of(model)) != set(wanted):
                continue
            name = name + _width_suffix(name, model, wanted)
            # Classes and input channels are not part of the name, so they are taken from the checkpoint.
            keys = [key for key, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
            classes, channels = wanted[f"{keys[-1]}.weight"][0], wanted[f"{keys[0]}.weight"][1]
            if channels != 3 and name.startswith("torchvision:"):
                continue
            fitted = build(name, num_classes=classes, in_channels=channels).model
        if shapes_of(fitted) == wanted:
            return name
    return ""


def _candidates(convolutions: int) -> Iterator[str]:
    """Names that may fit. A CIFAR ResNet has as many convolutions as its depth says, so that few need be built."""
    for name in ARCHS:
        depth = re.match(r"resnet(\d+)", name)
        shortcuts = 3 if name == "resnet164" else 2 if name.endswith("-b") else 0
        if depth is None or int(depth[1]) - 1 + shortcuts == convolutions:
            yield name
    yield from (f"torchvision:{name}" for name in _TORCHVISION)


def _width_suffix(name: str, model: nn.Module, wanted: Shapes) -> str:
    first = next((key for key, module in model.named_modules() if isinstance(module, nn.Conv2d)), "")
    width = wanted[f"{first}.weight"][0]
    return f"-w{width}" if re.match(r"(resnet|densenet)\d", name) and width != 16 else ""
