"""The names of modules, made from those in the file."""

from __future__ import annotations

import keyword
import re

from torch import nn

_OTHER = re.compile(r"[^0-9A-Za-z_.]+")


def layer_name(node_name: str, weight_name: str) -> str:
    """The name of a layer: what its weight is called without `.weight`, as torch writes it, or else its node's name.

    torch's older exporter spells the module's path as scopes: /layer1/layer1.0/conv1/Conv is layer1.0.conv1.
    """
    if weight_name.endswith(".weight"):
        return valid_name(weight_name.removesuffix(".weight"))
    if "/" not in node_name:
        return valid_name(node_name)
    path: list[str] = []
    for scope in node_name.strip("/").split("/"):
        path = [*path[:-1], scope] if path and scope.startswith(f"{path[-1]}.") else [*path, scope]
    is_operation = len(path) > 1 and path[-1][:1].isupper()
    return valid_name(".".join(path[:-1] if is_operation else path))


def valid_name(name: str) -> str:
    """A dotted path whose parts are neither empty nor words of Python, nor hold anything but letters, digits and
    underscores."""
    parts = [f"{part}_" if keyword.iskeyword(part) else part for part in _OTHER.sub("_", name).split(".") if part]
    return ".".join(parts) or "unnamed"


def place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that a new child of this dotted name goes into, made if need be, and the child's own name.

    A number is put behind a name that is taken, by another child or by what every module has (`forward`, `training`).
    """
    *path, child = name.split(".")
    parent = root
    for part in path:
        inside = getattr(parent, part, None)
        if inside is None:
            inside = nn.Module()
            parent.add_module(part, inside)
        if type(inside) is not nn.Module:  # a layer, which holds no other: the dots stay in one name
            return place(root, name.replace(".", "_"))
        parent = inside
    taken, number = child, 0
    while hasattr(parent, taken):
        number += 1
        taken = f"{child}_{number}"
    return parent, taken
