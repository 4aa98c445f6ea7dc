"""An ONNX model as a .tflite file."""

from __future__ import annotations

from dataclasses import replace

from onnx import ModelProto, NodeProto

from edgeprune.errors import InputError
from edgeprune.exporters.options import ConvertOptions, IoLayout
from edgeprune.exporters.tflite.file import TfliteFile
from edgeprune.exporters.tflite.network import Network
from edgeprune.exporters.tflite.ops.table import OPS, REMEDIES
from edgeprune.exporters.tflite.record import RECORD, FileRecord, Port, encoded
from edgeprune.exporters.tflite.translation import Step, Translation
from edgeprune.exporters.tflite.values import CHANNELS_LAST, Value, plain
from edgeprune.onnx_files.graph import is_standard


def to_tflite(model: ModelProto, options: ConvertOptions | None = None) -> bytes:
    """The bytes of a .tflite file that computes what the model does; its sizes are all fixed, the batch included.

    Inputs and outputs with four axes are (N, H, W, C), or as ONNX has them with `io_layout="nchw"`; the others are as
    ONNX has them. Same model and options, same bytes.

    InputError with node, operation and reason for what LiteRT cannot compute.
    """
    options = options or ConvertOptions()
    options.check()
    network, file = Network(model), TfliteFile()
    translation = Translation(network, file)
    inputs = {name: _input(translation, name, options.io_layout) for name in network.inputs}
    for node in network.nodes:
        if node.output[0] not in translation.done:
            _translate(translation, node)
    ports = tuple(_port(translation, name) for name in inputs)
    taken = set(inputs.values())
    outputs = {name: _output(translation, name, options.io_layout, taken) for name in network.outputs}
    record = FileRecord(ports, tuple(_port(translation, name) for name in outputs), tuple(file.sources))
    return file.finished(inputs, outputs, {**options.metadata, RECORD: encoded(record)})


def _translate(translation: Translation, node: NodeProto) -> None:
    step = Step(translation, node)
    if not is_standard(node):
        raise step.refuse(f"the operation is of the domain {node.domain}", expected="ONNX's own operations")
    if node.op_type not in OPS:
        raise step.refuse(
            "there is no such operation in what edgeprune can write",
            expected=f"one of {len(OPS)} operations", remedy=REMEDIES.get(node.op_type, ""),
        )  # fmt: skip
    OPS[node.op_type](step)


def _input(translation: Translation, name: str, layout: IoLayout) -> int:
    network = translation.network
    shape, dtype = network.shapes[name], network.dtypes[name]
    if dtype != "float32":
        raise InputError(
            f"cannot be written for LiteRT: it is of type {dtype}", where=f"input {name!r}", expected="float32",
            remedy="export the network in FP32",
        )  # fmt: skip
    order = _outer_order(shape, layout)
    tensor = translation.file.tensor(name, [shape[axis] for axis in order], dtype)
    translation.values[name] = Value(shape, order, tensor)
    return tensor


def _output(translation: Translation, name: str, layout: IoLayout, taken: set[int]) -> int:
    """The tensor of an output, which no input and no other output has."""
    value = translation.value(name)
    step = Step(translation, NodeProto(name=name, op_type="Identity", output=[name]))
    lying = step.ordered(value, _outer_order(value.shape, layout))
    tensor = step.tensor(lying)
    if value.data is not None or tensor in taken:
        tensor = step.copied(tensor)
    taken.add(tensor)
    translation.values[name] = replace(lying, tensor=tensor)
    translation.file.rename(tensor, name)
    return tensor


def _outer_order(shape: tuple[int, ...], layout: IoLayout) -> tuple[int, ...]:
    return CHANNELS_LAST if layout == "nhwc" and len(shape) == 4 else plain(len(shape))


def _port(translation: Translation, name: str) -> Port:
    value = translation.values[name]
    return Port(name, value.shape, value.order)
