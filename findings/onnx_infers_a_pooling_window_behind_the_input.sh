#!/usr/bin/env bash
# With ceil_mode, onnx's shape inference counts a pooling window that would begin behind the input and its padding in
# front; ONNX Runtime and torch leave such a window out. So an inferred shape is one row larger than what is computed, for
# a model that the checker passes, and a converter that trusts the inferred shapes writes a network of other sizes. A
# guess would be that inference and runtime agree wherever the checker does not object.
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

for op in ("MaxPool", "AveragePool"):
    node = helper.make_node(op, ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape
    inferred = tuple(dim.dim_value for dim in inferred.dim)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    computed = session.run(None, {"x": np.zeros((1, 1, 9, 9), np.float32)})[0].shape
    print(f"{op} of 9x9, kernel 2, stride 2, padding 1: inferred {inferred}, computed {computed}")
    assert inferred == (1, 1, 6, 6) and computed == (1, 1, 5, 5), "changed"
PY
