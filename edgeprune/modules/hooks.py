"""Forward hooks of the user's that change what a network computes. A trace sees those inside of what it traces. Those
on the network itself are lost with it, and those on a layer where the layer is replaced or folded."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.modules.baked import HOOKS
from edgeprune.modules.outputs import tensors_in


def check_own_hooks(model: nn.Module, example_input: Tensor) -> None:
    """InputError for hooks on the network itself that change its outputs for the example (N, C, H, W)."""
    if _has_hooks(model) and "" in changing_hooks(model, example_input):
        raise InputError(
            "a forward hook on the network changes what it gives, and no trace sees it", where=type(model).__name__,
            expected="a forward that does it all", remedy="write what the hook does into forward, or remove the hook",
        )  # fmt: skip


def changing_hooks(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Names of the modules (empty for the network itself) whose forward hooks change its outputs; none where the
    network cannot be copied or run."""
    if not any(_has_hooks(module) for module in model.modules()):
        return ()
    try:
        copied = copy.deepcopy(model).eval()
        with torch.no_grad():
            expected = tensors_in(copied(example_input))
            hooked = [(name, module) for name, module in copied.named_modules() if _has_hooks(module)]
            return tuple(name for name, module in hooked if _matters(copied, module, example_input, expected))
    except Exception:  # whatever a user's forward raises is told where it is traced
        return ()


def _matters(model: nn.Module, module: nn.Module, example_input: Tensor, expected: list[Tensor]) -> bool:
    """Whether the network gives something else without the hooks of this module."""
    kept = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = type(kept[0])(), type(kept[1])()
    try:
        found = tensors_in(model(example_input))
    finally:
        module._forward_hooks, module._forward_pre_hooks = kept
    return len(found) != len(expected) or not all(map(torch.equal, found, expected))


def _has_hooks(module: nn.Module) -> bool:
    """Whether there are hooks beside torch's own, which compute weights."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not isinstance(hook, HOOKS) for hook in hooks)
