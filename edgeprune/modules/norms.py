"""The modules that normalise each channel by stored statistics: in eval mode one factor and one sum a channel."""

from __future__ import annotations

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
"""Their tensors, one value a channel each; those that a module has not are None."""


def is_norm(module: object) -> bool:
    """Whether it is just one of them; a subclass may do more (an activation, say)."""
    return type(module) in NORMS
