"""One real run of a traced model, which records what each layer computes."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from edgeprune.errors import InputError, first_line


@dataclass
class LayerCalls:
    """Output positions (H * W) of every conv and linear layer, summed over its calls in one forward pass."""

    positions: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)


def run_once(module: fx.GraphModule, example_input: Tensor) -> LayerCalls:
    calls = LayerCalls()

    def hook(name: str) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: object, output: Tensor) -> None:
            positions = math.prod(output.shape[2:]) if isinstance(layer, nn.Conv2d) else math.prod(output.shape[1:-1])
            calls.positions[name] = calls.positions.get(name, 0) + positions
            calls.count[name] = calls.count.get(name, 0) + 1

        return record

    handles = [
        layer.register_forward_hook(hook(name))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # ShapeProp prints a traceback of its own
            ShapeProp(module).propagate(example_input)
    except Exception as error:
        raise InputError(
            f"the model cannot be run on an input of shape {tuple(example_input.shape)}: "
            f"{first_line(error.__cause__ or error)}",
            remedy="check --input-size (C,H,W) and --arch",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls
