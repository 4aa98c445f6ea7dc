#!/usr/bin/env bash
# ncnn.Mat(array) reads the memory of a numpy array, but does not keep the array alive, so that the usual way to hand over
# an input, ncnn.Mat(expression).clone(), copies memory that was freed before: numbers out of nowhere, or a crash. A
# guess would be that the binding keeps what it refers to, as numpy, torch and OpenVINO do, or that clone() comes in time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import ncnn
import numpy as np

held = np.ones((64, 8, 8), np.float32)
before = sys.getrefcount(held)
mat = ncnn.Mat(held)
print(f"references to an array before and behind ncnn.Mat(array): {before}, {sys.getrefcount(held)}")
assert sys.getrefcount(held) == before, "changed: the Mat keeps its array"

kept = float(np.array(mat.clone()).sum())
loose = [ncnn.Mat(np.full((64, 2, 2), float(n), np.float32)) for n in range(1, 9)]
got = [float(np.array(mat).flat[0]) for mat in loose]
print(f"sum of 4096 ones, of an array that somebody holds: {kept:.0f}")
print(f"first numbers of eight Mats that were filled with 1 to 8, whose arrays nobody holds: {got}")
assert kept == 4096 and got != [float(n) for n in range(1, 9)], "changed"
PY
