"""The architectures that `--arch` knows. Importing this module does not import torch; `build` does."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.errors import InputError, first_line, unknown_name
from edgeprune.io.user_code import check_factory_file, is_file_spec, load_factory
from edgeprune.zoo.detectors import check_no_detector

if TYPE_CHECKING:
    from torch import nn

_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
_FORM_SUMMARIES = {
    "": "keys layer1.0.conv1; shortcuts without parameters, zero channels on both sides",
    "-stage": "keys stage_1.0.conv_a; shortcuts without parameters, zero channels at the end",
    "-b": "keys layer1.0.conv1; 1x1 convolutions as shortcuts",
}
_CIFAR = re.compile(r"(?P<net>resnet|densenet)(?P<depth>\d+)(?P<form>-stage|-b)?(?:-w(?P<width>[1-9]\d{0,3}))?")

ARCHS: Mapping[str, str] = {
    **{
        f"resnet{depth}{form}": f"CIFAR ResNet-{depth}, 3x32x32; {summary}"
        for form, summary in _FORM_SUMMARIES.items()
        for depth in _DEPTHS
    },
    "resnet164": "CIFAR ResNet-164, pre-activation bottlenecks, 3x32x32; keys layer1.0.downsample.0, fc",
    "densenet40": "CIFAR DenseNet-40, growth 12, 3x32x32; keys dense1.0.conv1, trans1.conv1, fc",
    "densenet86": "CIFAR DenseNet-86, growth 8-16-32, 3x32x32; keys features.denseblock_1.denselayer_1.conv1",
    "vgg16-cifar": "VGG-16 for CIFAR with BatchNorm, 3x32x32; keys features.0, classifier",
}
"""Built-in architectures -> summary. All but VGG take the suffix -wN: N channels in the first convolution (16 without
it), and in a ResNet so many in its first stage."""

ARCH_FORMS: Mapping[str, str] = {
    "resnet20-w32": "any CIFAR ResNet above, with 32 instead of 16 channels in its first stage",
    "densenet40-w24": "a CIFAR DenseNet above, with 24 instead of 16 channels in its first convolution",
    "torchvision:NAME": "any network of torchvision for classification or segmentation, such as torchvision:resnet50",
    "timm:NAME": "any network of timm, where timm is installed",
    "path/to/file.py:factory": "your own: a function without required arguments that returns a torch.nn.Module",
}
"""Other spellings that `build` takes -> summary."""

PACKAGES = {"torchvision": "'edgeprune[prune]'", "timm": "timm"}
"""Packages with networks, and what installs them."""

AUXILIARY_KEYS = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
"""How the keys of torchvision's auxiliary classifiers begin. Checkpoints of GoogLeNet, Inception v3, FCN and DeepLab
have them; no inference uses them, and the networks that `build` gives are without them."""


@dataclass(frozen=True)
class BuiltArch:
    """A network with random weights, in eval mode."""

    name: str
    model: nn.Module
    input_shape: tuple[int, int, int]
    """(channels, height, width) of one sample."""


def build(
    arch: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    input_size: tuple[int, int] | None = None,
) -> BuiltArch:
    """Build an architecture by name; its weights come from torch's global random state.

    `num_classes` None means the architecture's own (10 for CIFAR's, 1000 for torchvision's). `input_size` is (height,
    width) where the usual one is not wanted. A factory of the user's is called with `num_classes` and `in_channels`
    where it has parameters of these names, and they are left to it where it has none; INPUT_SHAPE = (C, H, W) on the
    model or in the file gives its input shape. Raises InputError if there is no such architecture, or it cannot be
    built as asked.
    """
    check_arch(arch, num_classes)
    if is_file_spec(arch):
        model, shape = _from_file(arch, num_classes, in_channels, input_size)
    elif arch.startswith("torchvision:"):
        from edgeprune.zoo.from_torchvision import from_torchvision

        model, shape = from_torchvision(arch, num_classes, in_channels)
    elif arch.startswith("timm:"):
        model, shape = _from_timm(arch, num_classes, in_channels)
    else:
        model, shape = _built_in(arch, 10 if num_classes is None else num_classes, in_channels)
    if input_size is not None:
        shape = (shape[0], *input_size)
    if min(shape) < 1:
        raise InputError(f"input shape {shape}", where=arch, expected="channels, height and width of at least 1")
    return BuiltArch(arch, model.eval(), shape)


def check_arch(arch: str, num_classes: int | None = None) -> None:
    """InputError for an architecture that cannot be built, as far as this is known without building it."""
    if num_classes is not None and num_classes < 1:
        raise InputError(f"{num_classes} classes", where=arch, expected="at least 1")
    package, _, name = arch.partition(":")
    if is_file_spec(arch):
        check_factory_file(arch, "model")
    elif package in PACKAGES and name:
        if importlib.util.find_spec(package) is None:
            remedy = f"pip install {PACKAGES[package]}"
            raise InputError(f"the package {package} is not installed", where=arch, remedy=remedy)
    elif arch != "vgg16-cifar" and (not _CIFAR.fullmatch(arch) or arch.split("-w")[0] not in ARCHS):
        raise _unknown(arch)


def _built_in(arch: str, num_classes: int, in_channels: int) -> tuple[nn.Module, tuple[int, int, int]]:
    shape = (in_channels, 32, 32)
    if arch == "vgg16-cifar":
        from edgeprune.zoo.cifar_vgg import CifarVgg16

        return CifarVgg16(num_classes=num_classes, in_channels=in_channels), shape
    match = _CIFAR.fullmatch(arch)
    assert match is not None, "checked before"
    depth, width = int(match["depth"]), int(match["width"] or 16)
    if match["net"] == "densenet":
        from edgeprune.zoo.cifar_densenet import CifarDenseNet, CifarDenseNet86

        if depth == 86:
            return CifarDenseNet86(width=width, num_classes=num_classes, in_channels=in_channels), shape
        return CifarDenseNet(depth, width=width, num_classes=num_classes, in_channels=in_channels), shape
    if depth == 164:
        from edgeprune.zoo.cifar_preresnet import CifarPreResNet

        return CifarPreResNet(depth, width=width, num_classes=num_classes, in_channels=in_channels), shape
    from edgeprune.zoo.cifar_resnet import FORMS, CifarResNet

    form = FORMS[match["form"] or ""]
    return CifarResNet(depth, form, width=width, num_classes=num_classes, in_channels=in_channels), shape


def _unknown(arch: str) -> InputError:
    """resnet50 is the ImageNet network to most people, so torchvision's name is suggested before resnet56."""
    if importlib.util.find_spec("torchvision") is not None:
        from edgeprune.zoo.from_torchvision import names

        if arch in names():
            return InputError(f"unknown architecture {arch!r}", remedy=f"did you mean torchvision:{arch}?")
    return unknown_name("architecture", arch, ARCHS, remedy="`edgeprune list archs` shows all")


def _from_timm(arch: str, num_classes: int | None, in_channels: int) -> tuple[nn.Module, tuple[int, int, int]]:
    timm = importlib.import_module("timm")
    name = arch.removeprefix("timm:")
    known = timm.list_models()
    if name not in known:
        raise unknown_name("network of timm", name, known)
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(name, pretrained=False, in_chans=in_channels, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"timm cannot build it: {first_line(error)}", where=arch) from error
    _, height, width = model.default_cfg["input_size"]
    return model, (in_channels, height, width)


def _from_file(
    arch: str, num_classes: int | None, in_channels: int, input_size: tuple[int, int] | None
) -> tuple[nn.Module, tuple[int, int, int]]:
    from torch import nn

    factory = load_factory(arch, "model")
    options: dict[str, object] = {"in_channels": in_channels}
    if num_classes is not None:
        options["num_classes"] = num_classes
    model = factory.call(options=options)
    if not isinstance(model, nn.Module):
        raise InputError(f"the factory returned a {type(model).__name__}", where=arch, expected="a torch.nn.Module")
    check_no_detector(model, arch)
    shape = getattr(model, "INPUT_SHAPE", getattr(factory.module, "INPUT_SHAPE", None))
    if shape is None and input_size is not None:
        return model, (in_channels, *input_size)
    if not isinstance(shape, (tuple, list)) or len(shape) != 3 or not all(isinstance(n, int) for n in shape):
        given = "does not give its input shape" if shape is None else f"has INPUT_SHAPE {shape!r}"
        raise InputError(
            f"the model {given}", where=arch, expected="INPUT_SHAPE = (3, 32, 32) or alike in the file",
            remedy="set it, or pass --input-size",
        )  # fmt: skip
    return model, (shape[0], shape[1], shape[2])
