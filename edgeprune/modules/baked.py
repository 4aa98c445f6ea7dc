"""Weights that are computed anew at each forward pass, as the plain parameters that inference needs.

`torch.nn.utils.weight_norm`, `spectral_norm`, `prune` and parametrizations keep a layer's weight as a function of other
tensors, and layers that standardise their weights compute it themselves. What is pruned, folded and exported is the
weight itself.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from edgeprune.modules.plain_layers import plain_form, with_plain_layers

HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


def baked(model: nn.Module) -> nn.Module:
    """The model with plain weights, which computes the same in eval mode: a copy, or the model itself where its weights
    are plain already.

    Raises whatever a module raises that cannot be copied.
    """
    if not any(_is_computed(module) or plain_form(module) is not None for module in model.modules()):
        return model
    copied = copy.deepcopy(model, _computed_tensors(model))
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)
        for hook in _own_hooks(module):
            _bake_hook(module, hook)
    return with_plain_layers(copied)


def _is_computed(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or bool(_own_hooks(module))


def _own_hooks(module: nn.Module) -> list[object]:
    """torch's hooks that compute a weight before each forward."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, HOOKS)]


def _computed_tensors(model: nn.Module) -> dict[int, Tensor]:
    """What a deep copy takes for the tensors that a forward pass computed, which torch refuses to copy."""
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(value): value.detach().clone() for value in held if not value.is_leaf}


def _bake_parametrizations(module: nn.Module) -> None:
    """As `parametrize.remove_parametrizations`, which would break the original: a copy shares its class, and with it
    the property that computes the weight."""
    names: list[str] = list(module.parametrizations)  # type: ignore[arg-type]
    computed = {name: getattr(module, name).detach().clone() for name in names}
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in computed.items():
        module.register_parameter(name, nn.Parameter(value))


def _bake_hook(module: nn.Module, hook: object) -> None:
    """What the hook would compute, for good."""
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, hook.name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, hook.name)
    elif isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
