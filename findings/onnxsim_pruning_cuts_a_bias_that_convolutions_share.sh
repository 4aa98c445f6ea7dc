#!/usr/bin/env bash
# onnxsim's apply_structured_pruning cuts the bias of the convolutions that it thins, also where other convolutions, which
# keep all of their filters, have the same tensor as their bias. torch's older exporter writes equal tensors once, so that
# files of networks with several zero biases (a ResNet with fresh BatchNorms, folded) are such. The call ends without a word,
# onnx.checker accepts the file with full_check=True, and ONNX Runtime fails when it is run. A guess would be that a
# tensor with several readers is copied before it is cut, or that the checker would notice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 onnxsim==0.8.1 numpy==2.4.6
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import numpy as np
import onnx
import onnxruntime
import onnxsim
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
nodes = [
    helper.make_node("Conv", ["x", "w0", "bias"], ["a"], name="first", pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Conv", ["b", "w1", "bias"], ["c"], name="second", pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["c"], ["d"]),
    helper.make_node("Conv", ["d", "w2", "bias"], ["e"], name="third", pads=[1, 1, 1, 1]),
    helper.make_node("Add", ["e", "b"], ["y"]),  # the first and third keep their filters, the second may lose some
]
shapes = {"w0": (16, 3, 3, 3), "w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "bias": (16,)}
tensors = [numpy_helper.from_array(random.normal(size=s).astype(np.float32), name) for name, s in shapes.items()]
ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("x", 3), ("y", 16))]
graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
onnx.checker.check_model(model, full_check=True)


def runs(given):
    try:
        session = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    except Exception as error:
        return f"fails: {str(error).splitlines()[0][-90:]}"
    return "runs"


pruned = onnxsim.apply_structured_pruning(model, sparsity=0.5)
sizes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
for node in pruned.graph.node:
    if node.op_type == "Conv":
        print(node.name, {name: sizes[name] for name in node.input if name in sizes})
onnx.checker.check_model(pruned, full_check=True)
print(f"onnxsim {onnxsim.__version__}: onnx.checker accepts it; before: {runs(model)}; pruned: {runs(pruned)}")
assert runs(model) == "runs", "something else is different"
assert runs(pruned).startswith("fails"), "the shared bias is kept now"
print("as described")
PY
