#!/usr/bin/env bash
# pnnx 20261020 converts an ONNX Gather that puts the channels of an image into another order (axis 1, constant indices)
# to ncnn without a word and with exit code 0. ncnn has no such layer: what stands in the .ncnn.param file is a Crop to one
# channel. A guess would be an error, or a layer that ncnn refuses to load.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pnnx==20261020 onnx==1.23.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PY'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

order = [(c + 3) % 8 for c in range(8)]
nodes = [
    helper.make_node("Gather", ["x", "order"], ["moved"], axis=1),
    helper.make_node("Relu", ["moved"], ["y"]),
]
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 6, 6]) for name in ("x", "y")]
graph = helper.make_graph(nodes, "g", value[:1], value[1:], [numpy_helper.from_array(np.array(order), "order")])
onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), "order.onnx")
PY
pnnx=$(find venv -type f -name pnnx -perm -u+x | head -1)
"$pnnx" order.onnx 'inputshape=[1,8,6,6]' > pnnx.log 2>&1 && echo "pnnx: exit code 0" || { echo "pnnx: exit code $?"; tail -5 pnnx.log; exit 1; }
cat order.ncnn.param
grep -q '^Crop ' order.ncnn.param || { echo "no Crop any more: something else is written now"; exit 1; }
! grep -qi 'gather\|permute\|shuffle' order.ncnn.param
echo "as described"
