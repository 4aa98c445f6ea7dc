#!/usr/bin/env bash
# Torch-Pruning 1.6.1, round_to: asked to remove 90 % of 64 channels and to leave a multiple of 16, it removes none.
#
# round_to=16 makes what is left of a layer a multiple of 16, for kernels that work on blocks. One would guess that a
# layer of which fewer than 16 channels would be left keeps one block. It keeps all of its channels: what is left is
# rounded down, to 0, and a layer is not pruned to nothing. So the more is asked, the less may happen: at a ratio of
# 0.75 a layer of 64 channels keeps 16, at 0.8 it keeps 64. Networks with narrow layers (16, 24, 32 channels in their
# first stages) stay whole there, and no word says so.
#
# Seen with torch 2.15, CPU: "64 channels, ratio 0.9, multiples of 16: 64 left".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps torch-pruning==1.6.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
import torch_pruning as tp
from torch import nn


def left(channels: int, ratio: float, multiple: int) -> int:
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 10, 3))
    pruner = tp.pruner.MagnitudePruner(
        net, torch.zeros(1, 3, 16, 16), importance=tp.importance.MagnitudeImportance(), pruning_ratio=ratio,
        round_to=multiple, ignored_layers=[net[2]],
    )
    pruner.step()
    found = net[0].out_channels
    print(f"{channels} channels, ratio {ratio}, multiples of {multiple}: {found} left")
    return found


assert left(64, 0.75, 16) == 16, "a ratio that hits the multiple is met"
assert left(64, 0.7, 16) == 16, "rounded down: 19.2 channels become 16"
assert left(64, 0.8, 16) == 64, "12.8 channels: it used to leave all 64"
assert left(64, 0.9, 16) == 64, "6.4 channels: it used to leave all 64"
assert left(24, 0.5, 16) == 24, "12 channels: it used to leave all 24"
PYTHON
echo "as described"
