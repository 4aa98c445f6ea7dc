#!/usr/bin/env bash
# ONNX Runtime's CPU Sigmoid is exact to about 1e-7, absolutely and not relatively: below -14 it is off by a tenth and
# more of its value, it is larger at -17 than at -16, and from -18 on it is exactly zero (its logarithm is minus
# infinity). torch gives 1.5e-8 there. A guess would be that float32 keeps its seven digits through an activation, and
# that a larger input never gives a smaller score: scores of a detector that are all small are ranked otherwise on the
# device, and a comparison relative to the largest output finds a right file wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", ends[:1], ends[1:])
model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
onnx.checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = np.array([-8, -10, -12, -14, -15, -16, -17, -18, -30], np.float32)
given = session.run(None, {"x": x})[0].astype(np.float64)
exact = 1 / (1 + np.exp(-x.astype(np.float64)))
print(f"ONNX Runtime {onnxruntime.__version__}")
for place, found, right in zip(x, given, exact):
    print(f"sigmoid({place:g}) = {found:.3e}, exactly {right:.3e}: off by {abs(found - right) / right:.1%} of it")
by_input = dict(zip(x.tolist(), given.tolist()))
assert np.abs(given - exact).max() < 2e-7, "the absolute error is larger than it was"
assert (np.abs(given - exact) / exact).max() >= 1, "small values are kept now"
assert by_input[-17] > by_input[-16] and by_input[-18] == 0, "it is monotonic now"
print("as described")
PY
