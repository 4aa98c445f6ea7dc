"""Tracing: an ordinary model -> its fx graph, its layers, and the coupled sets of its channels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from edgeprune.errors import InputError, first_line
from edgeprune.tracing.channel_walk import ChannelWalk, Traced
from edgeprune.tracing.fx_tracer import LenientTracer
from edgeprune.tracing.one_run import recorded, run_once
from edgeprune.tracing.plain_norms import restore_norms
from edgeprune.tracing.python_words import allow_python_words

__all__ = ["Traced", "trace"]


def trace(model: nn.Module, example_input: Tensor) -> Traced:
    """Trace `model` (left as it is) with an example input of shape (N, C, H, W).

    Raises InputError if the model's own forward cannot be traced or run with this input.
    """
    check_traceable(model)
    try:
        model = copy.deepcopy(model).eval()
    except Exception as error:  # whatever a user's module does when it is copied
        raise InputError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}",
            remedy="remove weight_norm and the like first (torch.nn.utils.remove_weight_norm)",
        ) from error
    try:
        with recorded(model) as calls:
            tracer = LenientTracer(example_input, calls)
            fx_graph = tracer.trace(model)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be traced by torch.fx: {first_line(error)}",
            expected="a forward without branches on tensor values",
            remedy="move what is dynamic into a submodule (it then stays dense as a whole) or out of the model",
        ) from error
    tracer.drop_unread_numbers()
    allow_python_words(fx_graph)
    module = fx.GraphModule(model, fx_graph)
    restore_norms(module, model)
    if not tracer.is_computed:
        calls = run_once(module, example_input)  # which says why
    walk = ChannelWalk(module, tracer.opaque, calls)
    for node in module.graph.nodes:
        walk.visit(node)
    return walk.finish(tuple(example_input.shape[1:]), counts_channels=tracer.counts_channels)


def check_traceable(model: nn.Module) -> None:
    """InputError for what has no forward of its own, and for weights that the first forward pass has yet to make."""
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"{name} is TorchScript, which has no Python forward to trace", expected="the nn.Module that it is of",
            remedy="build that, and load the weights from the TorchScript file (docs/checkpoints.md)",
        )  # fmt: skip
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise InputError(
            f"{name} is what torch.compile made of a network", expected="the network itself",
            remedy="pass model._orig_mod",
        )  # fmt: skip
    lazy = [name for name, weight in model.named_parameters() if is_lazy(weight)]
    if lazy:
        raise InputError(
            f"{lazy[0]} is not there yet: a lazy layer makes its weights in its first forward pass",
            expected="a network with weights",
            remedy="run it once on an example input first",
        )
