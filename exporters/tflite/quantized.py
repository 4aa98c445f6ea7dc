"""A .tflite file in INT8, by LiteRT's own quantiser (ai-edge-quantizer), from the ranges that calibration saw.

Weights of convolutions and linear layers have 8 bits and a scale for each filter, activations 8 bits and one scale a
tensor with a zero point, as XNNPACK's kernels take them; a convolution in groups stays one CONV_2D. Inputs and outputs
stay float32: a QUANTIZE and a DEQUANTIZE stand beside them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import msgspec
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe_manager
from numpy.typing import NDArray

from edgeprune.errors import InputError, first_line
from edgeprune.exporters.tflite.file import repacked
from edgeprune.exporters.tflite.interpreter import feed, invoke, without_chatter
from edgeprune.exporters.tflite.layer_formats import operation
from edgeprune.exporters.tflite.record import RECORD, FileRecord, encoded, file_record
from edgeprune.io import progress
from edgeprune.io.arrays import Feeds

_BITS = 8
_BETWEEN = frozenset({"QUANTIZE", "DEQUANTIZE"})
"""What the quantiser puts between float32 and INT8; a file in FP32 has none of them."""
_RESHAPING = frozenset({"RESHAPE", "TRANSPOSE"})
_ROOM = 1.5
"""How much further than calibration saw an output may reach: a step of its 8 bits is as much coarser."""
Range = Mapping[str, NDArray[np.float32]]
"""`min` and `max` of a tensor, as the quantiser takes them."""


def quantized(data: bytes, batches: Sequence[Feeds], fp32_layers: Collection[str] = ()) -> bytes:
    """The file in INT8; its metadata, names and shapes are those that it had. Same arguments, same bytes.

    `data` is a file in FP32 that `to_tflite` wrote, `batches` are inputs by the ONNX file's names and in its shapes,
    `fp32_layers` the ONNX nodes that stay in FP32. InputError if there is nothing to calibrate with, or the file cannot
    be quantised.
    """
    if not batches:
        raise InputError("no inputs to calibrate with", where="INT8", expected="one batch or more")
    record = file_record(data, where="INT8")
    try:
        recipe, seen = _recipe(data, record, fp32_layers), _with_room(data, ranges(data, record, batches))
        with redirect_stderr(StringIO()), warnings.catch_warnings():  # it draws progress that nobody asked for
            warnings.simplefilter("ignore")
            made = quantizer.Quantizer(data, recipe).quantize(seen, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"LiteRT's quantiser does not take it: {first_line(error)}", where="INT8", remedy="pass --precision fp32"
        ) from error
    return _with_record(bytes(made.quantized_model), record)


def ranges(data: bytes, record: FileRecord, batches: Sequence[Feeds]) -> dict[str, Range]:
    """The least and the largest value that each float32 tensor had that the file computes or is fed, by its name."""
    with without_chatter(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that keeping all tensors takes memory
        interpreter = Interpreter(model_content=data, num_threads=1, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    computed = {int(place) for node in interpreter._get_ops_details() for place in node["outputs"]}
    computed |= {int(place["index"]) for place in interpreter.get_input_details()}
    told = [
        place
        for place in interpreter.get_tensor_details()
        if place["index"] in computed and place["dtype"] == np.float32 and place["name"]
    ]
    found = dict.fromkeys((place["name"] for place in told), (np.inf, -np.inf))
    for feeds in progress.track(batches, "calibrating INT8", total=len(batches)):
        feed(interpreter, record, feeds)
        invoke(interpreter, where="INT8")
        for place in told:
            values = interpreter.get_tensor(place["index"])
            low, high = found[place["name"]]
            found[place["name"]] = min(low, float(values.min())), max(high, float(values.max()))
    seen: dict[str, Range] = {}
    for place in told:
        least, most = (np.full((1,) * len(place["shape"]), limit, np.float32) for limit in found[place["name"]])
        seen[place["name"]] = {"min": least, "max": most}
    return seen


def _with_room(data: bytes, seen: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges, wider for outputs, and for what is only reshaped into them: logits beyond what calibration saw would
    be cut off, which takes them further from FP32's than any rounding."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    graph = model.subgraphs[0]
    makers = {int(place): operator for operator in graph.operators for place in operator.outputs}
    names, left = set[str](), [int(place) for place in graph.outputs]
    while left:
        place = left.pop()
        names.add(graph.tensors[place].name.decode())
        if place in makers and operation(model, makers[place]) in _RESHAPING:
            left.append(int(makers[place].inputs[0]))
    return {
        name: {end: value * _ROOM for end, value in limits.items()} if name in names else limits
        for name, limits in seen.items()
    }


def _recipe(data: bytes, record: FileRecord, fp32_layers: Collection[str]) -> Any:
    """Everything that the quantiser knows in 8 bits, but inputs, outputs and these layers. Operators are known to it by
    the names of what they write."""
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data)).subgraphs[0]
    written = [
        graph.tensors[place].name.decode()
        for operator, node in zip(graph.operators, record.nodes, strict=True)
        if node in fp32_layers
        for place in operator.outputs
    ]
    manager = recipe_manager.RecipeManager()
    manager.add_static_config(".*", "*", _BITS, _BITS)
    for kept in ("INPUT", "OUTPUT"):
        manager.add_quantization_config(".*", kept, None, "no_quantize")
    for name in written:
        manager.add_quantization_config(f"^{re.escape(name)};?$", "*", None, "no_quantize")
    return manager.get_quantization_recipe()


def _with_record(data: bytes, record: FileRecord) -> bytes:
    """The quantised file with a record of its own operators: what stands between two formats is for no node."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    nodes = iter(record.nodes)
    sources = tuple(
        "" if operation(model, operator) in _BETWEEN else next(nodes) for operator in model.subgraphs[0].operators
    )
    return repacked(data, {RECORD: encoded(msgspec.structs.replace(record, nodes=sources))})
