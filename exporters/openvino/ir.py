"""OpenVINO's IR: a network as OpenVINO reads it, in XML, and its weights beside it, in float32.

Reading an ONNX file is the same translation, so the IR holds what `read_model` makes of it; what OpenVINO does to a
network later, when it compiles it for a processor, is in neither file, and only running it tells.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgeprune.errors import InputError
from edgeprune.exporters.openvino.package import import_openvino
from edgeprune.io.arrays import Array, Feeds

openvino: Any = import_openvino()
_STEM = "model"
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_NUM_THREADS": 1,
    "PERFORMANCE_HINT": "LATENCY",
}
"""Settings with which OpenVINO computes in float32, where it may take bfloat16 otherwise."""


def to_ir(model: ModelProto) -> Mapping[str, bytes]:
    """The two files by suffix, `.xml` first. Names of inputs and outputs are those of the ONNX file.

    InputError where OpenVINO does not know an operation.
    """
    try:
        network = openvino.Core().read_model(model.SerializeToString())
    except RuntimeError as error:
        raise InputError(
            f"OpenVINO cannot read it: {reason(error)}",
            where="openvino",
            expected=f"operations that OpenVINO {openvino.__version__} knows",
        ) from error
    _number_anew(network, {name for node in model.graph.node for name in (node.name, *node.output)})
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder) / f"{_STEM}.xml"
        openvino.save_model(network, path, compress_to_fp16=False)
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}


def _number_anew(network: Any, known: Collection[str]) -> None:
    """Number what OpenVINO named itself from 0 on: it counts through the whole process, so that no two files of one
    network were the same."""
    for number, operation in enumerate(network.get_ordered_ops()):
        name = operation.get_friendly_name()
        if name not in known and re.fullmatch(rf"{operation.get_type_name()}_\d+", name):
            operation.set_friendly_name(f"{operation.get_type_name()}_{number}")


def run_file(path: Path, feeds: Feeds) -> dict[str, Array]:
    """The outputs of an `.xml` by name, with the weights beside it, on the processor in float32."""
    try:
        request = openvino.Core().compile_model(str(path), "CPU", EXACT).create_infer_request()
        request.infer({name: np.ascontiguousarray(value) for name, value in feeds.items()})
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot run it: {reason(error)}", where=path) from error
    outputs = request.get_compiled_model().outputs
    return {output.get_any_name(): np.array(request.get_tensor(output).data) for output in outputs}


def reason(error: RuntimeError) -> str:
    """OpenVINO's text without places in its sources, and without its advice on writing extensions."""
    left_out = ("Exception from", "Check '", "FrontEnd API failed", "Summary:", "To facilitate")
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line.removeprefix("-- ") for line in lines if line and not line.startswith(left_out)]
    return ": ".join(told).rstrip(".:") or type(error).__name__
