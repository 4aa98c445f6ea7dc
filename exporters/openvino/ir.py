"""An ONNX model as OpenVINO's IR, and what OpenVINO makes of the files."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import ModelProto

from edgeprune.errors import InputError
from edgeprune.exporters.openvino.layer_formats import layer_formats
from edgeprune.exporters.openvino.package import import_openvino
from edgeprune.exporters.options import ConvertOptions
from edgeprune.io.arrays import Array, Feeds
from edgeprune.precision.quantization import to_int8

openvino: Any = import_openvino()

_SECTION = "edgeprune"
"""Of the IR's own information, which holds the ONNX nodes and what the caller keeps in the file."""


def to_ir(model: ModelProto, options: ConvertOptions) -> dict[str, bytes]:
    """The two files by their suffix; weights are halved in FP16 alone, which the device then computes in.

    In INT8 it is ONNX Runtime's quantised model that is written: read from ONNX, OpenVINO's own quantiser leaves
    convolutions in groups in FP32. InputError if the model cannot be quantised, or OpenVINO cannot read it.
    """
    if options.precision == "int8":
        model = to_int8(model, options.batches, bits=options.weight_bits, fp32_layers=options.fp32_layers)
    writers = {value: node.name for node in model.graph.node for value in node.output}
    try:
        read = openvino.Core().read_model(model.SerializeToString())
        _name_apart(read, {*writers, *writers.values(), *(value.name for value in model.graph.input)})
        read.set_rt_info(msgspec.json.encode(writers).decode(), [_SECTION, "writers"])
        for name, data in options.metadata.items():
            read.set_rt_info(data.decode(), [_SECTION, name.replace(".", "_")])
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            path = Path(folder, "model.xml")
            openvino.save_model(read, path, compress_to_fp16=options.precision == "fp16")
            return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot read it: {reason(error)}", where="ONNX model") from error


def run_ir(path: Path, several: Sequence[Feeds]) -> tuple[list[dict[str, Array]], Mapping[str, str]]:
    """The outputs of written files for one inputs after the other, on one thread in the precision that they have, and
    the number format in which OpenVINO ran each layer. InputError where OpenVINO refuses them."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    try:
        model = openvino.Core().read_model(path)
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        outputs = [_outputs(request.infer(dict(feeds)), compiled) for feeds in several]
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot run it: {reason(error)}", where=path) from error
    writers = msgspec.json.decode(str(model.get_rt_info([_SECTION, "writers"]).astype(str)), type=dict[str, str])
    return outputs, layer_formats(compiled.get_runtime_model(), writers)


def _name_apart(model: Any, known: Collection[str]) -> None:
    """Number the nodes that OpenVINO added from 0: it counts them through the process, and files would differ."""
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() not in known:
            node.set_friendly_name(f"{node.get_type_name()}_{number}")


def _outputs(results: Any, compiled: Any) -> dict[str, Array]:
    return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}


def reason(error: RuntimeError) -> str:
    """OpenVINO's text without places in its sources, and without its advice on writing extensions."""
    left_out = ("Exception from", "Check '", "FrontEnd API failed", "Summary:", "To facilitate")
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line.removeprefix("-- ") for line in lines if line and not line.startswith(left_out)]
    return ": ".join(told).rstrip(".:") or type(error).__name__
