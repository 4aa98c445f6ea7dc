"""torch.fx tracing that survives modules it cannot trace.

The example input is computed along, node by node: a forward may branch on shapes, and loop over the parts of a split,
but not on what a tensor holds.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError

from edgeprune.errors import InputError, first_line
from edgeprune.modules.fx_nodes import result_of
from edgeprune.modules.grouped_conv import GroupedConv2d
from edgeprune.modules.norms import is_norm
from edgeprune.tracing.one_run import LayerCalls, note_shapes


class _Known:
    """What Python asks of a value itself, not of a tensor, is answered from what was computed along."""

    tracer: Any
    """The `LenientTracer` that it belongs to."""
    requires_grad = False
    """Asked whether it needs gradients, it says no: checkpointing, which would save memory then, is not traced."""

    def __len__(self) -> int:
        return self.tracer.length_of(self)  # type: ignore[no-any-return]

    def __index__(self) -> int:
        return operator.index(self.tracer.value_of(self))

    def __int__(self) -> int:
        return int(self.tracer.value_of(self))

    def __float__(self) -> float:
        return float(self.tracer.value_of(self))


class _Proxy(_Known, fx.Proxy):
    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    def __setitem__(self, key: object, value: object) -> None:
        raise TraceError(
            f"its forward assigns into a tensor ({self.node.name}[...] = ...), which torch.where or torch.cat would not"
        )


class _Attribute(_Known, Attribute):
    """An attribute of a value, such as its shape."""


class LenientTracer(fx.Tracer):
    """Traces into every module; one that cannot be traced becomes a leaf, with the reason kept in `opaque`."""

    def __init__(self, example_input: Tensor, calls: LayerCalls) -> None:
        """`calls`: where what the layers compute is recorded."""
        super().__init__()
        self._calls = calls
        self.opaque: dict[str, str] = {}
        self._example = example_input
        self._values: dict[fx.Node, Any] = {}
        """What each node gives for the example input, as far as that could be computed."""
        self._is_computing = False
        self._channel_counts: set[fx.Node] = set()
        """Nodes whose number follows from how many channels a tensor has."""
        self.counts_channels = False
        """Whether the forward went one way rather than another, or so many times, because of such a number."""

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

    # -- what a forward asks of a value ------------------------------------------------------------------------------
    def value_of(self, proxy: fx.Proxy) -> Any:
        """A number, a size, or a tuple; TraceError for a tensor, on whose values nothing may depend."""
        value = self._values.get(proxy.node, self)
        if value is self or isinstance(value, Tensor):
            raise TraceError(f"its forward depends on the values of a tensor ({proxy.node.name})")
        self.counts_channels |= proxy.node in self._channel_counts
        return value

    def length_of(self, proxy: fx.Proxy) -> int:
        """As `value_of`: of a tensor, its length is the number of images, which no trace may fix."""
        if isinstance(self._values.get(proxy.node), Tensor):
            raise TraceError(
                f"its forward takes len() of a tensor ({proxy.node.name}), which x.shape[0] would keep open"
            )
        return len(self.value_of(proxy))

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.value_of(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([obj[number] for number in range(len(self.value_of(obj)))])  # type: ignore[index]

    # -- computing along ---------------------------------------------------------------------------------------------
    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        self._is_computing = True
        try:
            with torch.no_grad():
                value = self._values[proxy.node] = self._computed(proxy.node)
            note_shapes(proxy.node, value)
            if self._counts(proxy.node):
                self._channel_counts.add(proxy.node)
        except Exception:  # whatever it is, the one real run will raise it again, and say so
            pass
        finally:
            self._is_computing = False
        return proxy

    def _computed(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "placeholder":
            return self._example
        return result_of(node, args, kwargs, self.root)

    def _counts(self, node: fx.Node) -> bool:
        """Whether a number follows from the size of axis 1: taken out of a shape, or made of such numbers or shapes."""
        value, sources = self._values[node], node.all_input_nodes
        if isinstance(value, Tensor) or not sources:
            return False
        of = self._values.get(sources[0])
        number = node.args[1] if len(node.args) > 1 else None
        if isinstance(of, Tensor):
            return node.target == "size" and isinstance(number, int) and number % of.dim() == 1
        if isinstance(of, torch.Size) and node.target is operator.getitem and isinstance(number, int):
            return number % len(of) == 1
        return any(
            source in self._channel_counts or isinstance(self._values.get(source), torch.Size) for source in sources
        )

    @property
    def is_computed(self) -> bool:
        """Whether all that was traced could be computed."""
        return all(node in self._values for node in self.graph.nodes if node.op != "output")

    def drop_unread_numbers(self) -> None:
        """Erase the nodes that give sizes and other numbers which only the forward's own branches asked for."""
        for node in reversed(list(self.graph.nodes)):
            is_number = isinstance(self._values.get(node), (bool, int, float, torch.Size))
            if is_number and not node.users and node.op != "placeholder":
                self.graph.erase_node(node)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._is_computing:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        before, stack, calls = len(self.graph.nodes), self.module_stack.copy(), self._calls.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # whatever a user's forward does with a proxy that a proxy cannot do
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            self.module_stack = stack  # what failed inside was not taken off it
            self._calls.reset(calls)  # the module will be computed as a whole
            self.opaque = {k: v for k, v in self.opaque.items() if not k.startswith(f"{name}.")}
            self.opaque[name] = first_line(error)
            return self.create_proxy("call_module", name, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._is_computing else super().getattr(attr, attr_val, parameter_proxy_cache)
