#!/usr/bin/env bash
# ONNX Runtime's CPU provider runs an FP16 file with FP32 between its nodes (it inserts casts and takes neighbouring ones
# out again): values beyond 65504 inside the network survive, and the output is finite and right. A device that really
# computes in FP16, and onnx.reference, get infinity. A guess would be that a finite, accurate run of the FP16 file on the
# CPU tells that the network fits FP16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

warnings.simplefilter("ignore")
kernel = np.full((4, 4, 1, 1), 100, np.float16)
nodes = [
    helper.make_node("Conv", ["x", "up"], ["large"]),  # 4 channels of 300, times 100: 120000, more than FP16 holds
    helper.make_node("Conv", ["large", "down"], ["y"]),
]
tensors = [numpy_helper.from_array(kernel, "up"), numpy_helper.from_array((1 / kernel).astype(np.float16), "down")]
graph = helper.make_graph(
    nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 4, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 4, 8, 8])], tensors,
)
model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
onnx.checker.check_model(model, full_check=True)
x = np.full((1, 4, 8, 8), 300, np.float16)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
runtime = float(session.run(None, {"x": x})[0].flat[0])
reference = float(np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0]).flat[0])
print(f"onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}")
print(f"output on ONNX Runtime's CPU provider: {runtime}; by onnx.reference, in FP16 all through: {reference}")
assert np.isinf(np.float16(300) * np.float16(100) * np.float16(4)), "FP16 holds it"
assert np.isfinite(runtime) and abs(runtime - 4800) < 20, "ONNX Runtime computes in FP16 now"
assert not np.isfinite(reference), "something else is different"
print("as described")
PY
