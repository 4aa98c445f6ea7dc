"""Whether a model is one that can be run: ONNX's own checker is asked first, and where it objects, ONNX Runtime."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from edgeprune.errors import InputError, first_line
from edgeprune.io import progress
from edgeprune.onnx_files.graph import opset

_PLACES = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])|/onnxruntime_src/\S+ "
)
_REMEDY = "export the model again, or name another file"


def require_valid(model: ModelProto, where: object, *, data: bytes | None = None, full: bool = False) -> None:
    """InputError for a model that ONNX Runtime refuses, with its own sentence. What it runs although onnx.checker
    objects is taken, with a note. `data`: the model as bytes, where it is at hand; `full`: shapes are checked as well.
    """
    try:
        onnx.checker.check_model(model if data is None else data, full_check=full)
        return
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        objection = first_line(error)
        if refusal := _refusal(model):
            raise InputError(
                f"is not a valid model: {refusal}",
                where=where,
                expected="a model that ONNX Runtime can run",
                remedy="export the model again",
            ) from error
    if isinstance(where, Path | str):
        _note_once(str(where), objection)


def require_runnable(model: ModelProto, where: object) -> None:
    """InputError for a model that ONNX Runtime refuses, with its own sentence: such as one with operations that are not
    ONNX's, to which onnx.checker has no objection."""
    if refusal := _refusal(model):
        raise InputError(
            f"ONNX Runtime refuses it: {refusal}",
            where=where,
            expected="a model that ONNX Runtime can run",
            remedy="export it with ONNX's own operations",
        )


def runtime_sentence(error: BaseException) -> str:
    """What ONNX Runtime says, without its numbers and the places in its source."""
    return _PLACES.sub("", first_line(error)).strip() or first_line(error)


def check_version(model: ModelProto, where: object) -> None:
    """InputError for a model that is too new for this ONNX Runtime, or says no version."""
    version, ir_version = opset(model), model.ir_version
    if not model.opset_import and ir_version >= 3:
        raise InputError("names no opset", where=where, expected="an ONNX model with an opset_import", remedy=_REMEDY)
    if version < 1 or not _runtime_accepts(4, version):
        newest = next(v for v in range(onnx.defs.onnx_opset_version(), 0, -1) if _runtime_accepts(4, v))
        raise InputError(
            f"uses opset {version}",
            where=where,
            expected=f"1 to {newest}, which ONNX Runtime {onnxruntime.__version__} supports",
            remedy=f"export with opset {newest} or older, or update onnxruntime",
        )
    if ir_version < 1 or not _runtime_accepts(ir_version, min(version, 13)):
        newest = next(v for v in range(max(onnx.IR_VERSION, 4), 0, -1) if _runtime_accepts(v, 13))
        raise InputError(
            f"uses ONNX IR version {ir_version}",
            where=where,
            expected=f"at most {newest}, which ONNX Runtime {onnxruntime.__version__} supports",
            remedy="export with an older IR version, or update onnxruntime",
        )


@cache
def _runtime_accepts(ir_version: int, opset_version: int) -> bool:
    """Whether ONNX Runtime takes a model of these versions: it publishes no list, so ask it with the smallest model."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [result])
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset_version)])
    return not _refusal(model)


def _refusal(model: ModelProto) -> str:
    """Why ONNX Runtime does not load a model, in its own words; empty where it does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception types are private; any refusal is the answer
        return runtime_sentence(error)
    return ""


@lru_cache(maxsize=64)
def _note_once(where: str, objection: str) -> None:
    """One command reads a file several times."""
    progress.note(f"{where}: ONNX Runtime runs it, so it is taken, although onnx.checker objects: {objection}")
