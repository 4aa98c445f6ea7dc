#!/usr/bin/env bash
# torch 2.15: a deep copy of a parametrized module (torch.nn.utils.parametrizations.weight_norm, spectral_norm, ...) shares
# the class that was made for the original, and with it the property that computes the weight. Removing the
# parametrization from the COPY deletes that property: the copy is fine, the ORIGINAL has no weight any more and raises in
# its next forward. A guess would be that a deep copy can be changed without touching what it was copied from.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

torch.manual_seed(0)
original = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
x = torch.randn(1, 3, 8, 8)
before = original(x)
copied = copy.deepcopy(original)
parametrize.remove_parametrizations(copied, "weight", leave_parametrized=True)
same = torch.allclose(copied(x), before, atol=1e-6)
try:
    original(x)
    raised = "nothing"
except AttributeError as error:
    raised = f"AttributeError: {error}"
print(f"torch {torch.__version__}")
print(f"the copy, made plain, computes the same: {same}; it is a {type(copied).__name__}")
print(f"the original's forward then raises: {raised}; it is still a {type(original).__name__}")
assert same and raised.startswith("AttributeError"), "a copy has a class of its own now"
print("as described")
PY
