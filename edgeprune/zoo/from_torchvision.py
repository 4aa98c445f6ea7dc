"""torchvision's networks by name: those of them that go from images (N, C, H, W) to tensors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from edgeprune.errors import InputError
from edgeprune.zoo import detectors

_REASONS: Mapping[str, str] = {
    "detection": detectors.REASON,
    "video": "takes clips (N, C, T, H, W)",
    "optical_flow": "takes two images",
    "quantization": "holds weights in INT8",
}
"""torchvision's folders of other networks -> why they are not taken."""


def names() -> list[str]:
    """Networks for classification and for segmentation."""
    return _names_in("") + _names_in("segmentation")


def from_torchvision(arch: str, num_classes: int | None, in_channels: int) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network `torchvision:NAME` with random weights, and its usual input shape (C, H, W); InputError if there is
    none, or it cannot be pruned as it is."""
    name = arch.removeprefix("torchvision:")
    known = names()
    if name not in known:
        raise _unknown(arch, name, known)
    if in_channels != 3:
        raise InputError(f"{in_channels} input channels", where=arch, expected="3: torchvision's networks take RGB")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if name in _names_in("segmentation"):
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
        return model, (3, 520, 520)
    if name in ("googlenet", "inception_v3"):
        # Their own initialisation takes long, and they warn unless one is chosen.
        options |= {"init_weights": False, "aux_logits": False}
    size = 299 if name == "inception_v3" else 224
    return torchvision.models.get_model(name, weights=None, **options), (3, size, size)


def _unknown(arch: str, name: str, known: list[str]) -> InputError:
    for folder, reason in _REASONS.items():
        if name in _names_in(folder):
            remedy = detectors.REMEDY if folder == "detection" else ""
            return InputError(reason, where=arch, expected=detectors.EXPECTED, remedy=remedy)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return InputError(
        f"torchvision has no network {name!r} for classification or segmentation",
        remedy=f"did you mean {' or '.join(near)}?" if near else f"such as {', '.join(known[:3])}",
    )


def _names_in(folder: str) -> list[str]:
    place = getattr(torchvision.models, folder) if folder else torchvision.models
    return list(torchvision.models.list_models(module=place))
