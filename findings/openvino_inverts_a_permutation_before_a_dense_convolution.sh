#!/usr/bin/env bash
# OpenVINO 2026.4.1 (CPU) folds a Gather over all channels that stands in front of a dense convolution into its weights
# as the INVERSE permutation. No warning; the outputs are wrong by as much as the outputs themselves. A permutation that
# is its own inverse (a swap, a reversal) hides it, and so does a grouped convolution, in front of which the Gather stays.
# A guess would be that a graph optimisation either leaves a permutation alone or applies it as it stands.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8
rng = np.random.default_rng(0)
x = rng.standard_normal((1, CHANNELS, 6, 6)).astype(np.float32)


def model(order, groups):
    weight = np.random.default_rng(1).standard_normal((CHANNELS, CHANNELS // groups, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["x", "order"], ["moved"], axis=1),
        helper.make_node("Conv", ["moved", "weight"], ["y"], group=groups, pads=[1, 1, 1, 1]),
    ]
    tensors = [numpy_helper.from_array(np.array(order, np.int64), "order"), numpy_helper.from_array(weight, "weight")]
    shape = [1, CHANNELS, 6, 6]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], tensors,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def with_onnxruntime(m):
    session = onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def with_openvino(m):
    core = openvino.Core()
    read = core.read_model(m.SerializeToString(), b"")
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"x": x})[0]


def difference(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


cycle = [(c + 3) % CHANNELS for c in range(CHANNELS)]  # not its own inverse
inverse = [cycle.index(c) for c in range(CHANNELS)]
reversal = list(range(CHANNELS))[::-1]
dense = difference(with_openvino(model(cycle, 1)), with_onnxruntime(model(cycle, 1)))
as_inverse = difference(with_openvino(model(cycle, 1)), with_onnxruntime(model(inverse, 1)))
hidden = difference(with_openvino(model(reversal, 1)), with_onnxruntime(model(reversal, 1)))
grouped = difference(with_openvino(model(cycle, 2)), with_onnxruntime(model(cycle, 2)))
print(f"OpenVINO {openvino.__version__}, ONNX Runtime {onnxruntime.__version__}, onnx {onnx.__version__}")
print(f"dense convolution behind a cycle of channels: {dense:.2f} of the output's range apart")
print(f"  ... and from the same network with the inverse cycle: {as_inverse:.1e}")
print(f"dense, reversal (its own inverse): {hidden:.1e}; two groups, the cycle: {grouped:.1e}")
assert dense > 0.1, "OpenVINO computes what the file says now"
assert max(as_inverse, hidden, grouped) < 1e-4, "something else is different"
print("as described")
PY
