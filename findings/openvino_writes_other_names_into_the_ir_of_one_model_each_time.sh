#!/usr/bin/env bash
# OpenVINO 2026.4.1: the same ONNX model, read and saved twice in one process, gives two different XML files: nodes that
# OpenVINO adds are named with a number that it counts up through the process. The weights are the same. A guess would be that
# equal models give equal files, so that they can be compared by their hashes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from pathlib import Path

sys.modules["openvino_telemetry"] = None  # not to be told of the import
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

folder = Path(sys.argv[1])
weights = np.random.default_rng(0).standard_normal((8, 2, 3, 3)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["c"], "conv", group=4), helper.make_node("Flatten", ["c"], ["y"], "flatten")],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 9, 9])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    [numpy_helper.from_array(weights, "w")],
)
data = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


def saved(name):
    openvino.save_model(openvino.Core().read_model(data), folder / f"{name}.xml", compress_to_fp16=False)
    return (folder / f"{name}.xml").read_text().splitlines(), (folder / f"{name}.bin").read_bytes()


(first, weights_of_first), (second, weights_of_second) = saved("first"), saved("second")
differing = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
print(f"weights the same: {weights_of_first == weights_of_second}; lines of XML that differ: {len(differing)} of {len(first)}")
for one, other in differing[:3]:
    print(one.strip(), "|", other.strip())
if not differing or weights_of_first != weights_of_second:
    sys.exit("this has changed")
PY
