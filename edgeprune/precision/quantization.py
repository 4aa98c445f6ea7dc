"""ONNX models in INT8, by ONNX Runtime's static quantisation; what is given stays as it was.

Weights of convolutions and linear layers have 8 bits and a scale for each filter, activations one scale each, from the
ranges that calibration saw. The model says so with pairs of QuantizeLinear and DequantizeLinear, which runtimes fuse
into integer kernels; groups stay groups.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
from onnx import ModelProto

from edgeprune.errors import InputError, first_line
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.graph import attributes, opset
from edgeprune.onnx_files.model import check_model
from edgeprune.precision.weight_bits import WeightBits, weight_bits

OLDEST_OPSET = 13
"""Of ONNX's own operations: the first whose QuantizeLinear takes a scale for each filter."""
_LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
_OF_INTEGERS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm"})
_RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"})


def to_int8(
    model: ModelProto,
    batches: Sequence[Feeds],
    *,
    symmetric: bool = False,
    bits: WeightBits = "auto",
    fp32_layers: Collection[str] = (),
) -> ModelProto:
    """The model with 8-bit convolutions and linear layers, calibrated on `batches`; inputs and outputs stay float32.

    `symmetric` puts 0 in the middle of the activations' ranges and quantises nothing but the inputs and weights of
    layers, as TensorRT wants it; else activations are unsigned, which loses nothing behind a ReLU and is what
    processors multiply fastest. `bits` of the weights: see `weight_bits`. `fp32_layers` are nodes that stay in FP32.
    InputError if there is nothing to calibrate with, or the model cannot be quantised.
    """
    if not batches:
        raise InputError("no inputs to calibrate with", where="INT8", expected="one batch or more")
    if opset(model) < OLDEST_OPSET:
        what = f"uses opset {opset(model)}"
        raise InputError(what, where="INT8", expected=f"{OLDEST_OPSET} or later", remedy="export it again")
    quantiser = _quantiser()
    options = {"ActivationSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": _LAYERS}
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, _quiet():
        path = Path(folder) / "quantized.onnx"
        try:
            quantiser.quantize_static(
                _copy(model),
                path,
                _Batches(batches),
                quant_format=quantiser.QuantFormat.QDQ,
                op_types_to_quantize=_LAYERS if symmetric else None,
                # Processors have no kernel for a convolution of bytes that gives floats, which outputs are to be.
                nodes_to_exclude=[
                    *fp32_layers,
                    *_transposed_in_groups(model),
                    *([] if symmetric else _last_convolutions(model)),
                ],
                per_channel=True,
                reduce_range=weight_bits(bits, symmetric=symmetric) == 7,
                activation_type=quantiser.QuantType.QInt8 if symmetric else quantiser.QuantType.QUInt8,
                weight_type=quantiser.QuantType.QInt8,
                extra_options=options if symmetric else None,
            )
        except (ValueError, RuntimeError, KeyError, AssertionError) as error:
            raise InputError(
                f"cannot be quantised: {first_line(error)}",
                where=model.graph.name or "ONNX model",
                remedy="pass --precision fp32",
            ) from error
        return check_model(_with_float_outputs(onnx.load(path)), where="the model in INT8")


def quantized_layers(model: ModelProto) -> int:
    """How many convolutions and linear layers read their weights from 8 bits."""
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type in eight}
    widened = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    layers = (node for node in model.graph.node if node.op_type in _LAYERS)
    of_integers = sum(node.op_type in _OF_INTEGERS for node in model.graph.node)
    return of_integers + sum(any(name in widened for name in node.input) for node in layers)


def require_full_precision(model: ModelProto, wanted: str, where: object) -> None:
    """InputError for a model whose file has other numbers than FP32 already: it cannot be converted once more."""
    layers = quantized_layers(model)
    half = sum(
        tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for tensor in model.graph.initializer
    )
    full = sum(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer)
    if not layers and half <= full:
        return
    raise InputError(
        f"is quantised already: {layers} of its layers have 8-bit weights" if layers else "is in FP16 already",
        where=where,
        expected=f"a network in FP32 to convert to {wanted.upper()}",
        remedy="leave --precision out: the file is taken as it is; or name the file that it was made from",
    )


def _with_float_outputs(model: ModelProto) -> ModelProto:
    """The model with its outputs no longer rounded to 8 bits (in place).

    Logits beyond the range that calibration saw would be cut off: of all roundings this one takes them furthest from
    FP32's.
    """
    graph = model.graph
    makers = {value: node for node in graph.node for value in node.output}
    outputs, fed = {output.name for output in graph.output}, {value.name for value in graph.input}
    renamed: dict[str, str] = {}
    left_out = []
    final = list(outputs)
    while final:
        node = makers.get(value := final.pop())
        if node is None:
            continue
        if node.op_type in _RESHAPING:
            final.append(node.input[0])
        rounding = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounding is not None and rounding.op_type == "QuantizeLinear" and rounding.input[0] not in fed:
            left_out.append(node.name)
            exact = rounding.input[0]
            renamed.update({exact: value} if value in outputs else {value: exact})
            final.append(exact)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    kept = [node for node in graph.node if node.name not in left_out]
    used = outputs.union(*(node.input for node in kept))
    del graph.node[:]
    graph.node.extend(node for node in kept if node.op_type != "QuantizeLinear" or node.output[0] in used)
    return model


def _last_convolutions(model: ModelProto) -> list[str]:
    """Names of the convolutions that write an output, or what is only reshaped into one."""
    makers = {value: node for node in model.graph.node for value in node.output}
    found = []
    for output in model.graph.output:
        node = makers.get(output.name)
        while node is not None and node.op_type in _RESHAPING:
            node = makers.get(node.input[0])
        if node is not None and node.op_type in ("Conv", "ConvTranspose"):
            found.append(node.name)
    return found


def _transposed_in_groups(model: ModelProto) -> list[str]:
    """Names of the transposed convolutions in groups with a bias, of which the quantiser takes one group's filters for
    all."""
    found = (node for node in model.graph.node if node.op_type == "ConvTranspose" and len(node.input) > 2)
    return [node.name for node in found if attributes(node).get("group", 1) != 1]


class _Batches:
    """The calibrator's way to ask for inputs."""

    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, object] | None:
        feeds = next(self._left, None)
        return None if feeds is None else dict(feeds)


def _quantiser() -> ModuleType:
    """ONNX Runtime's static quantisation. It loads modules of another of its packages by their bare names: that folder
    is on the path meanwhile, and only then."""
    before = list(sys.path)
    sys.path.append(str(Path(onnxruntime.__file__).parent / "transformers"))
    try:
        from onnxruntime import quantization  # slow to import, and seldom needed
    finally:
        sys.path[:] = before
    module: ModuleType = quantization
    return module


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to optimise the model beforehand, which `edgeprune export` has done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
