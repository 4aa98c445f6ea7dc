"""fx graphs of networks in which a module has a word of Python for its name, as in `nn.ModuleDict({"in": ...})`.

torch.fx writes a call of it as `self.parts.in(x)`, which is no Python: see
findings/torch_fx_writes_no_python_for_a_module_named_in.sh.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Sequence
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, PythonCode


def allow_python_words(graph: fx.Graph) -> None:
    """Let the code of this graph, which is changed, reach such modules and tensors by `getattr`."""
    if any(_has_word(node) for node in graph.nodes):
        graph.set_codegen(_ByGetattr())


def _has_word(node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr") and any(map(keyword.iskeyword, str(node.target).split(".")))


class _ByGetattr(CodeGen):
    def _gen_python_code(  # type: ignore[override]
        self, nodes: Sequence[fx.Node], *args: Any, **kwargs: Any
    ) -> PythonCode:
        nodes = list(nodes)
        code = super()._gen_python_code(nodes, *args, **kwargs)  # type: ignore[arg-type]
        source = code.src
        # The longest first: one may be the beginning of another.
        for target in sorted({str(node.target) for node in nodes if _has_word(node)}, key=len, reverse=True):
            for end in ("(", ";", "\n"):  # of a call, and of a tensor that is read
                source = source.replace(f"= {_as_written(target)}{end}", f"= {_reached(target)}{end}")
        return dataclasses.replace(code, src=source)


def _as_written(target: str) -> str:
    """As torch.fx writes it."""
    path = "self"
    for part in target.split("."):
        path = f"{path}.{part}" if part.isidentifier() else f'getattr({path}, "{part}")'
    return path


def _reached(target: str) -> str:
    path = "self"
    for part in target.split("."):
        path = f"getattr({path}, {part!r})"
    return path
