"""Which operators of a .tflite file LiteRT's delegate took, from what its interpreter tells.

The interpreter lists the file's operators and, behind them, one node for each part of the network that the delegate
runs, with the tensors that go in and out of the part; what is inside a part it does not say. It follows: what a part
gives out was made in it, what goes into one without coming out of another was not, and what does neither was made
where it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DELEGATE = "DELEGATE"


@dataclass(frozen=True)
class Delegation:
    """What became of a file's operators."""

    operators: tuple[str, ...]
    """Their names, in the file's order."""
    parts: int
    """Into how many the delegate took the network: more than 1 where operators between them are not the delegate's."""
    left: tuple[int, ...]
    """The operators that the delegate did not take, by their place."""

    def words(self) -> str:
        """What the delegate left, as a sentence without an end; empty where it took everything."""
        if not self.left:
            return ""
        counts = Counter(self.operators[place] for place in self.left)
        named = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        parts = f"{self.parts} part{'' if self.parts == 1 else 's'}"
        return f"XNNPACK leaves {named} of {len(self.operators)} operators to plain loops, and runs {parts}"


def delegation_in(interpreter: Any) -> Delegation:
    """What became of the operators of a file that is loaded."""
    outputs = [int(place["index"]) for place in interpreter.get_output_details()]
    return delegation(interpreter._get_ops_details(), outputs)


def delegation(nodes: Sequence[Mapping[str, Any]], outputs: Sequence[int]) -> Delegation:
    """`nodes`: what `Interpreter._get_ops_details` gives; `outputs`: the numbers of the network's output tensors."""
    operators = [node for node in nodes if node["op_name"] != DELEGATE]
    parts = [node for node in nodes if node["op_name"] == DELEGATE]
    enters = {int(tensor) for part in parts for tensor in part["inputs"]}
    leaves = {int(tensor) for part in parts for tensor in part["outputs"]}
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(operators):
        for tensor in node["inputs"]:
            readers.setdefault(int(tensor), []).append(place)
    taken: dict[int, bool] = {}
    for place in range(len(operators) - 1, -1, -1):
        made = [int(tensor) for tensor in operators[place]["outputs"]]
        inside = [taken[reader] for tensor in made for reader in readers.get(tensor, [])]
        if any(tensor in leaves for tensor in made):
            taken[place] = True
        elif any(tensor in enters or tensor in outputs for tensor in made):
            taken[place] = False
        else:
            taken[place] = any(inside) if inside else bool(parts)
    left = tuple(place for place in range(len(operators)) if not taken[place])
    return Delegation(tuple(node["op_name"] for node in operators), len(parts), left)
