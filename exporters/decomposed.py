"""A captured network in the operations that torch's ONNX exporter takes, so that it need not be traced a second time.

The exporter captures a network with `torch.export`, and then traces what it captured once more to decompose it: that
takes half of an export. What a CNN does in eval mode needs none of it, but for a few operations that are replaced here,
one for one, as the exporter would. A network of which that cannot be said is left to the exporter as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

_ATEN = torch.ops.aten


def decomposed(module: nn.Module, example_input: Tensor, dynamic_shapes: Any) -> ExportedProgram | None:
    """The module as a program that `torch.onnx.export` translates as it is; None where that takes decomposing.

    Raises whatever `torch.export` does for a module that it cannot capture.
    """
    program = torch.export.export(module, (example_input,), dynamic_shapes=dynamic_shapes, strict=False)
    for rewrite in (_functional, _in_eval_mode):  # in this order: a mutation is understood by what it changes
        for node in list(program.graph.nodes):
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                rewrite(program, node)
    if not all(map(_is_functional, program.graph.nodes)):
        return None
    program.graph.lint()
    program.graph_module.recompile()
    program.run_decompositions = lambda *_, **__: program  # nothing is left to do
    return program


def _functional(program: ExportedProgram, node: fx.Node) -> None:
    """Write an operation that changes its input as one that does not, where nothing else can see the change."""
    source = node.args[0] if node.args else None
    if not _target(node)._schema.is_mutable or not isinstance(source, fx.Node):
        return
    schema = _target(node)._schema
    plain = getattr(_ATEN, schema.name.removeprefix("aten::").removesuffix("_"), None)
    overload = getattr(plain, schema.overload_name or "default", None)
    if overload is not None and len(source.users) == 1 and _is_fresh(source):
        _replace(program, node, overload, node.args, node.kwargs)


def _is_fresh(node: fx.Node) -> bool:
    """Whether what the node gives lies in memory of its own."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target is _ATEN.dropout.default:
        return False
    return all(given.alias_info is None for given in node.target._schema.returns)


def _in_eval_mode(program: ExportedProgram, node: fx.Node) -> None:
    rewrite = _REWRITES.get(_target(node))
    if rewrite is not None:
        rewrite(program, node)


def _batch_norm(program: ExportedProgram, node: fx.Node) -> None:
    source, weight, bias, mean, variance, training, momentum, eps, _ = _given(node)
    if training:
        return
    fresh = (source, weight, bias, mean, variance, momentum, eps)
    norm = _inserted(program, node, _ATEN._native_batch_norm_legit_no_training.default, fresh)
    value = node.meta["val"]
    norm.meta["val"] = (value, value.new_empty(0), value.new_empty(0))  # it gives the batch's statistics, of none
    _replace(program, node, operator.getitem, (norm, 0))


def _pool(program: ExportedProgram, node: fx.Node) -> None:
    source, size = _given(node)
    held = list(source.meta["val"].shape[-2:])
    if size == [1, 1]:
        _replace(program, node, _ATEN.mean.dim, (source, [-1, -2], True))
    elif all(isinstance(there, int) and there % wanted == 0 for there, wanted in zip(held, size, strict=True)):
        window = [there // wanted for there, wanted in zip(held, size, strict=True)]
        _replace(program, node, _ATEN.avg_pool2d.default, (source, window, window))


def _reshape(program: ExportedProgram, node: fx.Node) -> None:
    sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
    if sizes.count(-1) <= 1:
        _replace(program, node, _ATEN.view.default, (node.args[0], sizes))


def _dropout(program: ExportedProgram, node: fx.Node) -> None:
    source, _, training = _given(node)
    if not training:
        _replace(program, node, _ATEN.clone.default, (source,))


_REWRITES: dict[object, Callable[[ExportedProgram, fx.Node], None]] = {
    _ATEN.batch_norm.default: _batch_norm,
    _ATEN.adaptive_avg_pool2d.default: _pool,
    _ATEN.dropout.default: _dropout,
    _ATEN.dropout_.default: _dropout,
    _ATEN.flatten.using_ints: _reshape,
    _ATEN.reshape.default: _reshape,
}


def _is_functional(node: fx.Node) -> bool:
    """Whether a node can be translated alone. (Of those the exporter refuses what it does not know.)"""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    return not node.target._schema.is_mutable and node.target not in _REWRITES


def _target(node: fx.Node) -> torch._ops.OpOverload:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target


def _given(node: fx.Node) -> list[Any]:
    return list(node.args)


def _replace(
    program: ExportedProgram, node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Any = None
) -> None:
    new = _inserted(program, node, target, args, kwargs)
    node.replace_all_uses_with(new)
    program.graph_signature.replace_all_uses(node.name, new.name)
    program.graph.erase_node(node)


def _inserted(
    program: ExportedProgram, node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Any = None
) -> fx.Node:
    """A new node in front of another, named as the exporter's own decomposition does."""
    name = target._opname if isinstance(target, torch._ops.OpOverload) else target.__name__
    with program.graph.inserting_before(node):
        new: fx.Node = program.graph.create_node("call_function", target, args, kwargs or {}, name)
    new.meta = dict(node.meta)
    return new
