#!/usr/bin/env bash
# torch.fx traces a network whose nn.ModuleDict has a key such as "in", "from" or "class", and then writes code for it that
# is no Python: fx.symbolic_trace ends in a SyntaxError. nn.ModuleDict takes every string that is no attribute of its own,
# torch.export takes the network, and fx itself reaches names that are no identifiers ("1x1") by getattr: a guess would be
# that it does so for these as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import fx, nn


class Network(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name, self.parts = name, nn.ModuleDict({name: nn.Conv2d(3, 4, 1)})

    def forward(self, x):
        return self.parts[self.name](x)


def traced(name):
    try:
        fx.symbolic_trace(Network(name))
    except SyntaxError as error:
        return f"SyntaxError: {error.msg}"
    return "traced"


told = {name: traced(name) for name in ("1x1", "inside", "in", "class")}
print(f"torch {torch.__version__}: {told}")
exported = torch.export.export(Network("in").eval(), (torch.zeros(1, 3, 4, 4),))
print("torch.export:", [node.name for node in exported.graph.nodes])
assert told["1x1"] == told["inside"] == "traced", "something else is different"
assert told["in"].startswith("SyntaxError") and told["class"].startswith("SyntaxError"), "it traces them now"
print("as described")
PY
