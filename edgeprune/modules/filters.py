"""The layers that have filters, and their weights with the filters first, however torch holds them."""

from __future__ import annotations

from torch import Tensor, nn

FilterLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
FILTER_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def is_transposed(module: nn.Module) -> bool:
    """Whether torch holds its weight with the input channels first; one filter a channel is the same either way."""
    return isinstance(module, nn.ConvTranspose2d) and module.groups == 1


def filters_first(weight: Tensor, *, transposed: bool) -> Tensor:
    """(C_out, C_in / groups, ...) of a weight as torch holds it, or back: a view."""
    return weight.transpose(0, 1) if transposed else weight


def filters_of(module: nn.Module) -> Tensor:
    """The module's weight, filters first: a view."""
    assert isinstance(module, FILTER_LAYERS), type(module)
    return filters_first(module.weight, transposed=is_transposed(module))
