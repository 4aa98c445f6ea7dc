"""A model that a caller has in memory, as a network to prune."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgeprune.errors import InputError, first_line
from edgeprune.modules.baked import baked
from edgeprune.pruning.network import Network
from edgeprune.tracing.trace import check_traceable
from edgeprune.zoo.detectors import check_no_detector


def network_of(model: nn.Module, example_input: Tensor) -> Network:
    """The model as a network; InputError if it or its example input cannot be one."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}", expected="a torch.nn.Module")
    if not isinstance(example_input, Tensor) or example_input.dim() != 4:
        is_tensor = isinstance(example_input, Tensor)
        got = tuple(example_input.shape) if is_tensor else f"a {type(example_input).__name__}"
        raise InputError(f"the example input is {got}", expected="a tensor of shape (N, C, H, W)")
    check_no_detector(model, type(model).__name__)
    check_traceable(model)
    odd = next((n for n, p in model.named_parameters() if p.dtype is not torch.float32), "")
    if odd:
        raise InputError(
            f"{odd} is {model.get_parameter(odd).dtype}", expected="float32 weights", remedy="model.float()"
        )
    packed = next((key for key, value in model.state_dict().items() if not isinstance(value, Tensor)), "")
    if packed:
        raise InputError(
            f"{packed} is no tensor, as in a quantized network", expected="float32 weights",
            remedy="prune first; `edgeprune profile --precision int8` measures INT8 afterwards",
        )  # fmt: skip
    channels, height, width = example_input.shape[1:]
    return Network(type(model).__name__, _in_eval_mode(baked(model)), (channels, height, width))


def _in_eval_mode(model: nn.Module) -> nn.Module:
    """The model, or a copy where it is training: it is the caller's, and stays as it is."""
    if not any(module.training for module in model.modules()):
        return model
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # whatever a user's module does when it is copied
        what = f"{type(model).__name__} cannot be copied: {first_line(error)}"
        raise InputError(what, remedy="pass it in eval mode") from error
