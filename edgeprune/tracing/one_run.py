"""What each layer of a model computes in one pass, and of which shape everything in between is."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, _extract_tensor_metadata

from edgeprune.errors import InputError, first_line
from edgeprune.modules.filters import FILTER_LAYERS


@dataclass
class LayerCalls:
    """Positions at which every layer's weights are applied (`Layer.positions`), over its calls in one forward pass."""

    positions: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def copy(self) -> LayerCalls:
        return LayerCalls(dict(self.positions), dict(self.count))

    def reset(self, earlier: LayerCalls) -> None:
        """Forget what was recorded since."""
        self.positions, self.count = earlier.positions, earlier.count


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[LayerCalls]:
    """What the layers of a model compute inside this block."""
    calls = LayerCalls()

    def hook(name: str) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # A transposed convolution applies its weights at each position of its input.
            at = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
            positions = math.prod(at.shape[1:-1] if isinstance(layer, nn.Linear) else at.shape[2:])
            calls.positions[name] = calls.positions.get(name, 0) + positions
            calls.count[name] = calls.count.get(name, 0) + 1

        return record

    handles = [
        layer.register_forward_hook(hook(name))
        for name, layer in model.named_modules()
        if isinstance(layer, FILTER_LAYERS)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def run_once(module: fx.GraphModule, example_input: Tensor) -> LayerCalls:
    """Run a traced model, which notes the shapes at its nodes; InputError if it cannot be run on this input."""
    try:
        with recorded(module) as calls, torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            ShapeProp(module).propagate(example_input)  # it prints a traceback of its own
    except Exception as error:
        raise InputError(
            f"the model cannot be run on an input of shape {tuple(example_input.shape)}: "
            f"{first_line(error.__cause__ or error)}",
            remedy="check --input-size (C,H,W) and --arch",
        ) from error
    return calls


def note_shapes(node: fx.Node, value: object) -> None:
    """Note at a node of which shape what it gives is, as `run_once` does."""
    if any(isinstance(part, Tensor) for part in _leaves(value)):
        node.meta["tensor_meta"] = fx.node.map_aggregate(value, _metadata)  # type: ignore[arg-type,type-var]


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _metadata(value: object) -> object:
    return _extract_tensor_metadata(value) if isinstance(value, Tensor) else value
