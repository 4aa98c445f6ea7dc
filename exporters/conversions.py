"""From an ONNX file to the files of another runtime: one table of what can be written.

Importing this module loads neither torch nor any of the runtimes; what a conversion needs is loaded when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, ValueInfoProto

from edgeprune.devices.this_machine import is_importable
from edgeprune.errors import InputError, unknown_name
from edgeprune.exporters.options import ConvertOptions
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.inputs import input_specs, static_batch, with_input_size
from edgeprune.onnx_files.shapes import concrete_shapes

__all__ = [
    "CONVERSIONS",
    "Conversion",
    "ConvertOptions",
    "conversion_named",
    "with_fixed_sizes",
    "with_input_shapes",
]


def _no_notes(path: Path) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Conversion:
    """One format that ONNX files can be written in."""

    name: str
    """As `--to` takes it."""
    runtime: str
    """In words."""
    suffix: str
    """Of the file that the runtime is given."""
    folder: str
    """Where in a bundle its files lie; empty: beside the ONNX files."""
    module: str
    """Python module that writing and checking it need."""
    extra: str
    """Which of edgeprune's extras brings that module."""
    convert: Callable[[ModelProto, ConvertOptions], Mapping[str, bytes]]
    """From a model whose sizes are all fixed (`with_fixed_sizes`) to suffix -> contents of a file; the first is
    `suffix`'s. InputError for what the format cannot hold, with node, operation and reason."""
    run: Callable[[Path, Feeds], dict[str, Array]]
    """The outputs of a written file by the ONNX file's names, shaped as the ONNX file's (N, C, H, W), for inputs by the
    same names and shapes, computed by the runtime that the file is for. What parity is measured on."""
    notes: Callable[[Path], tuple[str, ...]] = _no_notes
    """What whoever runs a written file should know, in sentences without an end."""
    beside: tuple[str, ...] = ()
    """Suffixes of what lies beside the file, under the same name."""
    has_layouts: bool = False
    """Whether the format leaves `ConvertOptions.io_layout` open."""

    def require(self) -> None:
        """InputError if what it needs is not installed."""
        if not is_importable(self.module):
            raise InputError(
                f"writing for {self.runtime} needs {self.module}",
                where=f"--to {self.name}",
                remedy=f"pip install 'edgeprune[{self.extra}]'",
            )

    def path(self, stem: str) -> str:
        """The main file's name inside a bundle; `stem` is `model` or `dense`."""
        return f"{self.folder}/{stem}{self.suffix}" if self.folder else f"{stem}{self.suffix}"


def _to_tflite(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.exporters.tflite.writer import to_tflite

    written: bytes = to_tflite(model, options)
    return {".tflite": written}


def _run_tflite(path: Path, feeds: Feeds) -> dict[str, Array]:
    from edgeprune.exporters.tflite.interpreter import run_file

    outputs: dict[str, Array] = run_file(path, feeds)
    return outputs


def _to_ncnn(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.exporters.ncnn.network import ncnn_network

    network = ncnn_network(model)
    return {".param": network.param().encode(), ".bin": network.weights()}


def _run_ncnn(path: Path, feeds: Feeds) -> dict[str, Array]:
    from edgeprune.exporters.ncnn.runtime import run_file

    outputs: dict[str, Array] = run_file(path, feeds)
    return outputs


def _to_openvino(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.exporters.openvino.ir import to_ir

    files: Mapping[str, bytes] = to_ir(model)
    return files


def _run_openvino(path: Path, feeds: Feeds) -> dict[str, Array]:
    from edgeprune.exporters.openvino.ir import run_file

    outputs: dict[str, Array] = run_file(path, feeds)
    return outputs


def _notes_on_tflite(path: Path) -> tuple[str, ...]:
    from edgeprune.exporters.tflite.delegation import delegation_in
    from edgeprune.exporters.tflite.interpreter import open_interpreter

    left: str = delegation_in(open_interpreter(path.read_bytes(), 1, where=path)).words()
    return (left,) if left else ()


_TFLITE = Conversion(
    name="tflite",
    runtime="LiteRT (TensorFlow Lite)",
    suffix=".tflite",
    folder="",
    module="ai_edge_litert",
    extra="litert",
    convert=_to_tflite,
    run=_run_tflite,
    notes=_notes_on_tflite,
    has_layouts=True,
)

_NCNN = Conversion(
    name="ncnn",
    runtime="ncnn",
    suffix=".param",
    folder="ncnn",
    module="ncnn",
    extra="ncnn",
    convert=_to_ncnn,
    run=_run_ncnn,
    beside=(".bin",),
)

_OPENVINO = Conversion(
    name="openvino",
    runtime="OpenVINO",
    suffix=".xml",
    folder="openvino",
    module="openvino",
    extra="openvino",
    convert=_to_openvino,
    run=_run_openvino,
    beside=(".bin",),
)

CONVERSIONS: Mapping[str, Conversion] = {conversion.name: conversion for conversion in (_TFLITE, _NCNN, _OPENVINO)}


def conversion_named(name: str) -> Conversion:
    """The conversion of this name; InputError if there is none, or if what it needs is not installed."""
    if name not in CONVERSIONS:
        raise unknown_name("format", name, CONVERSIONS)
    CONVERSIONS[name].require()
    return CONVERSIONS[name]


def with_fixed_sizes(model: ModelProto, input_size: Sequence[int] = (), *, where: object = "ONNX model") -> ModelProto:
    """A copy of the model in which every size of its inputs and outputs is a number: the batch is the one that the file
    has, or 1 where it leaves it open.

    InputError as `with_input_size`, and where a size of an output cannot be inferred.
    """
    sized = with_input_size(model, input_size, where=where)
    batch = static_batch(sized) or 1
    shapes = {
        spec.name: tuple(size if isinstance(size, int) else batch for size in spec.shape) for spec in input_specs(sized)
    }
    return with_input_shapes(sized, shapes, where=where)


def with_input_shapes(
    model: ModelProto, shapes: Mapping[str, Sequence[int]], *, where: object = "ONNX model"
) -> ModelProto:
    """A copy of the model whose inputs have these shapes, and whose outputs say the shapes that follow.

    InputError where shapes do not fit each other, or that of an output depends on what the network computes.
    """
    fixed = ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name in shapes:
            _set_shape(value, shapes[value.name])
    found = concrete_shapes(fixed, static_batch(fixed) or 1)
    for value in fixed.graph.output:
        if value.name not in found:
            raise InputError(
                f"the shape of output {value.name!r} depends on what the network computes",
                where=where,
                expected="outputs of a size that the input's size decides",
            )
        _set_shape(value, found[value.name])
    return fixed


def _set_shape(value: ValueInfoProto, shape: Sequence[int]) -> None:
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = size
