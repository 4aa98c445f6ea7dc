"""torch.fx tracing that survives modules it cannot trace, and one real run that records what each layer computes."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from edgeprune.errors import InputError, first_line
from edgeprune.modules.grouped_conv import GroupedConv2d
from edgeprune.modules.norms import is_norm


class _Proxy(fx.Proxy):
    """Asked whether it needs gradients, it says no: checkpointing, which would save memory then, is not traced."""

    requires_grad = False


class LenientTracer(fx.Tracer):
    """Traces into every module; one that cannot be traced becomes a leaf, with the reason kept in `opaque`."""

    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses of layers are leaves too: their weights are used in ways that we do not know.
        known = isinstance(m, (GroupedConv2d, nn.Conv2d, nn.Linear)) or is_norm(m)
        return known or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The network's input is the first argument of its forward; all others keep their defaults, as flags do."""
        taken = list(inspect.signature(root_fn).parameters.values())[1:]  # without self
        if not taken or taken[0].kind is inspect.Parameter.KEYWORD_ONLY:
            raise InputError(f"{type(self.root).__name__}.forward takes no input", expected="a tensor (N, C, H, W)")
        first, *others = taken
        needed = [p.name for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if needed:
            raise InputError(
                f"{type(self.root).__name__}.forward also needs {', '.join(needed)}",
                expected="a network with one input (N, C, H, W); others may have defaults",
                remedy="give them defaults, or wrap the network in a module that passes them",
            )
        return root_fn, [self.root, self.create_proxy("placeholder", first.name, (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        before, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # whatever a user's forward does with a proxy that a proxy cannot do
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            self.module_stack = stack  # what failed inside was not taken off it
            self.opaque = {k: v for k, v in self.opaque.items() if not k.startswith(f"{name}.")}
            self.opaque[name] = first_line(error)
            return self.create_proxy("call_module", name, args, kwargs)


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
