#!/usr/bin/env bash
# OpenVINO 2026.4.1 on x86 without VNNI: an INT8 convolution with unsigned activations and weights of 8 bits is wrong, not
# just rounded: products of two bytes are added in 16 bits and cut at 32767. Weights of 7 bits are right. No word is said,
# and a machine with VNNI, where one tests, shows nothing. oneDNN's own switch stands for the older processor here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys

sys.modules["openvino_telemetry"] = None  # not to be told of the import
import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

CHANNELS, GROUPS = 32, 4


def model(largest):
    """A grouped convolution of ones by ones, quantised so that a weight of 1 is this integer."""
    shape = (CHANNELS, CHANNELS // GROUPS, 3, 3)
    held = {
        "xs": np.float32(1 / 255), "xz": np.uint8(0), "ws": np.full(CHANNELS, 1 / largest, np.float32),
        "wz": np.zeros(CHANNELS, np.int8), "w": np.full(shape, largest, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"], axis=0),
        helper.make_node("Conv", ["d", "v"], ["y"], "conv", group=GROUPS),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, 14, 14])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


for largest in (127, 63):
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model(largest).SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    (output,) = compiled([np.ones((1, CHANNELS, 16, 16), np.float32)]).values()
    kernels = [
        node.get_rt_info()["primitiveType"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    print(f"weights up to {largest}: {output.ravel()[0]:.2f}, right is {9 * CHANNELS / GROUPS:.2f} ({', '.join(kernels)})")
PY
echo "this processor:"
"$folder/venv/bin/python" "$folder/run.py"
echo "as one with AVX2 and no VNNI:"
ONEDNN_MAX_CPU_ISA=AVX2 "$folder/venv/bin/python" "$folder/run.py" | tee "$folder/told"
grep -q "weights up to 63: 72.00" "$folder/told" && ! grep -q "weights up to 127: 72.00" "$folder/told"
