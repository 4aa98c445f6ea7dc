"""Two ways to see what a network computes: edgeprune's tracer (torch.fx, computing along) and torch.export.

python examples/benchmarks/front_ends.py [-o runs/front_ends.md] [--only yolo-like,timm:regnetx_002]

For each network of zoo.py: whether it can be traced, how many of its convolutions and linear layers are found at their
place, and the seconds. Random weights, batch 2 with a dynamic batch axis for torch.export (`strict=False`), on the CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import zoo

from edgeprune.modules.baked import baked
from edgeprune.tracing.trace import trace

LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
OPERATIONS = (["conv1d"], ["conv2d"], ["conv_transpose2d"], ["linear"])


def by_fx(model: nn.Module, x: Tensor) -> str:
    """Layers whose place in the graph is known, of all that the network has."""
    graph = trace(baked(model), x).graph
    return f"{sum(bool(layer.reads) for layer in graph.layers)} of {layer_count(model)}"


def by_export(model: nn.Module, x: Tensor) -> str:
    """Operations with a parameter of the network as their weight, of all layers that it has."""
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (x,), dynamic_shapes=[{0: batch}], strict=False)
    parameters = set(exported.graph_signature.inputs_to_parameters)
    found = {
        source.name
        for node in exported.graph.nodes
        if node.op == "call_function" and str(node.target).split(".")[-2:-1] in OPERATIONS
        for source in node.all_input_nodes[1:2]
        if source.name in parameters
    }
    return f"{len(found)} of {layer_count(model)}"


def layer_count(model: nn.Module) -> int:
    return sum(isinstance(module, LAYERS) for module in model.modules())


def told(see: Callable[[nn.Module, Tensor], str], model: nn.Module, x: Tensor) -> str:
    """What was seen and the seconds that it took, or why it was not."""
    started = time.perf_counter()
    try:
        with torch.no_grad():
            seen = see(model, x)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:90]}".replace("|", "/")
    return f"{seen}, {time.perf_counter() - started:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/front_ends.md"))
    parser.add_argument("--only", default="", help="networks, separated by commas; by default all of zoo.py")
    asked = parser.parse_args()
    rows = ["| network | torch.fx, computing along | torch.export |", "|---|---|---|"]
    for name in [name for name in asked.only.split(",") if name] or zoo.names():
        x = torch.randn(2, 3, zoo.side(name), zoo.side(name))
        rows.append(f"| {name} | {told(by_fx, zoo.built(name), x)} | {told(by_export, zoo.built(name), x)} |")
        print(rows[-1], flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
