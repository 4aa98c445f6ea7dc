"""BatchNorms that a forward writes out as a function, put back as the modules that they are.

A module of its own that normalises and then activates (timm's BatchNormAct2d, for one) is traced into: what is left is
`F.batch_norm` with the module's tensors, which here becomes a call of a plain BatchNorm that holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeprune.modules.norms import NORM_TENSORS

_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def restore_norms(module: fx.GraphModule, model: nn.Module) -> None:
    """Change the traced module of a model so; assertions on shapes, which such forwards begin with, go as well."""
    for node in list(module.graph.nodes):
        if node.target is torch._assert:
            _erase_with_inputs(node)
    calls = [(node, _given(node)) for node in module.graph.nodes if node.target is F.batch_norm]
    owners = [_owner(given) for _, given in calls]
    for (node, given), owner in zip(calls, owners, strict=True):
        if owner and owners.count(owner) == 1 and not given.get("training", False):
            kind = nn.BatchNorm1d if isinstance(model.get_submodule(owner), nn.BatchNorm1d) else nn.BatchNorm2d
            _replace(module, owner, _plain(module.get_submodule(owner), kind, given))
            with module.graph.inserting_before(node):
                norm = module.graph.call_module(owner, (given["input"],))
            norm.meta = dict(node.meta)
            node.replace_all_uses_with(norm)
            _erase_with_inputs(node)
    module.recompile()


def _given(node: fx.Node) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)


def _owner(given: Mapping[str, Any]) -> str:
    """The one module whose tensors all these are, each under its own name; empty if there is none."""
    paths = set()
    for name in NORM_TENSORS:
        value = given.get(name)
        if value is None and name in ("weight", "bias"):
            continue
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return ""
        path, _, own = str(value.target).rpartition(".")
        if own != name:
            return ""
        paths.add(path)
    return paths.pop() if len(paths) == 1 else ""


def _plain(module: nn.Module, kind: type[nn.BatchNorm1d | nn.BatchNorm2d], given: Mapping[str, Any]) -> nn.Module:
    """A BatchNorm with the tensors, and the parts, of a module that did more."""
    eps = given.get("eps", 1e-5)
    assert isinstance(module.running_mean, torch.Tensor)
    assert isinstance(eps, float)
    norm = kind(len(module.running_mean), eps=eps, affine=given.get("weight") is not None)
    for name in NORM_TENSORS:
        if getattr(norm, name) is not None:
            setattr(norm, name, getattr(module, name))
    for name, part in module.named_children():
        norm.add_module(name, part)
    norm.training = False
    return norm


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


def _erase_with_inputs(node: fx.Node) -> None:
    """Erase a node that nothing reads, and what was computed for it alone."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        if not source.users and source.op in ("get_attr", "call_function", "call_method"):
            _erase_with_inputs(source)
