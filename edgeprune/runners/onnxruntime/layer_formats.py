"""In which number format ONNX Runtime computes each layer, from the operations of its optimised model."""

from __future__ import annotations

from onnx import ModelProto

from edgeprune.onnx_files.constants import constants
from edgeprune.runners.onnxruntime.node_names import NodeNames

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FORMATS = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul",
                     "FusedMatMul"), "fp32"),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"),
                    "int8"),
}  # fmt: skip
"""Operation of the optimised model -> what it computes in."""


def layer_formats(model: ModelProto, optimized: ModelProto, names: NodeNames) -> dict[str, str]:
    """Node with weights, of a model in FP32 or INT8 -> `fp32` or `int8`, in order of execution. Layers that are fused
    into operations of another kind are left out."""
    fixed = constants(model)
    layers = {
        node.name
        for node in model.graph.node
        if node.op_type in _LAYERS and any(name in fixed for name in node.input[:2])
    }
    found = ((names.original(node.name), _FORMATS.get(node.op_type)) for node in optimized.graph.node)
    return {name: format for name, format in found if format is not None and name in layers}
