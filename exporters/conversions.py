"""From an ONNX file to the files of another runtime: one table of what can be written.

Importing this module loads neither torch nor any of the runtimes; what a conversion needs is loaded when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from onnx import ModelProto, ValueInfoProto

from edgeprune.devices.this_machine import is_importable
from edgeprune.errors import InputError, unknown_name
from edgeprune.exporters.options import IO_LAYOUTS, ConvertOptions, IoLayout
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.inputs import input_specs, static_batch, with_input_size
from edgeprune.onnx_files.shapes import concrete_shapes
from edgeprune.precision.formats import Precision
from edgeprune.precision.weight_bits import WeightBits, weight_bits

__all__ = [
    "CONVERSIONS",
    "Conversion",
    "ConvertOptions",
    "conversion_named",
    "with_batch",
    "with_fixed_sizes",
    "with_input_shapes",
]


def _no_notes(path: Path) -> tuple[str, ...]:
    return ()


class Need(NamedTuple):
    """A Python package that a conversion needs."""

    module: str
    extra: str
    """Which of edgeprune's extras brings it."""


@dataclass(frozen=True)
class Ran:
    """What a runtime made of a written file."""

    outputs: tuple[dict[str, Array], ...]
    """Of each of the inputs, by the ONNX file's names and in its shapes."""
    formats: Mapping[str, str]
    """Convolution or linear layer of the ONNX file -> the number format in which the runtime computed it; empty where
    it does not tell."""


def _cannot_run(path: Path, feeds: Sequence[Feeds]) -> Ran:
    raise NotImplementedError


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
    layouts: tuple[IoLayout, ...] = IO_LAYOUTS
    """Of inputs and outputs that it can write; the first where nobody asks."""
    also: Mapping[Precision, Need] = field(default_factory=dict)
    """Precisions besides FP32 that it can write, and what each needs besides."""
    run_all: Callable[[Path, Sequence[Feeds]], Ran] = _cannot_run
    """As `run` for several inputs in turn, with what the runtime tells of its layers; of a conversion with other
    precisions than FP32."""
    int8_weight_bits: Callable[[WeightBits], int] = weight_bits
    """Bits that the weights get in INT8; InputError for what the format cannot hold."""

    def require(self, precision: Precision = "fp32") -> None:
        """InputError if it cannot write this precision, or if what it needs is not installed."""
        known: dict[Precision, Need] = {"fp32": Need(self.module, self.extra), **self.also}
        if precision not in known:
            raise InputError(
                f"files for {self.runtime} are not written in {precision}",
                where=f"--to {self.name}",
                expected=f"--precision {' or '.join(known)}",
            )
        for needed in (known["fp32"], known[precision]):
            if not is_importable(needed.module):
                raise InputError(
                    f"writing for {self.runtime}{'' if precision == 'fp32' else f' in {precision}'} needs "
                    f"{needed.module}",
                    where=f"--to {self.name}",
                    remedy=f"pip install 'edgeprune[{needed.extra}]'",
                )

    def check(self, options: ConvertOptions) -> None:
        """InputError for what it cannot write."""
        options.check()
        if options.io_layout not in self.layouts:
            raise InputError(
                f"files for {self.runtime} take and give images in {' or '.join(self.layouts).upper()}",
                where=f"--io-layout {options.io_layout}",
                remedy="leave it out",
            )
        if options.precision == "int8":
            self.int8_weight_bits(options.weight_bits)

    def path(self, stem: str) -> str:
        """The main file's name inside a bundle; `stem` is `model` or `dense`."""
        return f"{self.folder}/{stem}{self.suffix}" if self.folder else f"{stem}{self.suffix}"


def _to_tflite(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.exporters.tflite.writer import to_tflite

    written: bytes = to_tflite(model, options)
    if options.precision == "int8":
        from edgeprune.exporters.tflite.quantized import quantized

        written = quantized(written, options.batches, options.fp32_layers)
    return {".tflite": written}


def _run_tflite(path: Path, feeds: Feeds) -> dict[str, Array]:
    from edgeprune.exporters.tflite.interpreter import run_file

    outputs: dict[str, Array] = run_file(path, feeds)
    return outputs


def _run_all_tflite(path: Path, feeds: Sequence[Feeds]) -> Ran:
    from edgeprune.exporters.tflite.interpreter import run_file_on
    from edgeprune.exporters.tflite.layer_formats import layer_formats

    return Ran(tuple(run_file_on(path, feeds)), layer_formats(path.read_bytes()))


def _tflite_weight_bits(asked: WeightBits) -> int:
    """8: XNNPACK adds products in 32 bits on every processor."""
    if asked == "7":
        raise InputError(
            "XNNPACK adds products of bytes in 32 bits: weights of 7 bits would only cost accuracy",
            where="--weight-bits 7",
            expected="8 or auto",
        )
    return 8


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
    also={"int8": Need("ai_edge_quantizer", "litert-int8")},
    run_all=_run_all_tflite,
    int8_weight_bits=_tflite_weight_bits,
)


def _to_openvino(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.exporters.openvino.ir import to_ir

    files: Mapping[str, bytes] = to_ir(model, options)
    return files


def _run_all_openvino(path: Path, feeds: Sequence[Feeds]) -> Ran:
    from edgeprune.exporters.openvino.ir import run_ir

    outputs, formats = run_ir(path, feeds)
    return Ran(tuple(outputs), formats)


_OPENVINO = Conversion(
    name="openvino",
    runtime="OpenVINO",
    suffix=".xml",
    folder="",
    module="openvino",
    extra="openvino",
    convert=_to_openvino,
    run=lambda path, feeds: _run_all_openvino(path, [feeds]).outputs[0],
    layouts=("nchw",),
    also=dict.fromkeys(("fp16", "int8"), Need("openvino", "openvino")),
    run_all=_run_all_openvino,
)

CONVERSIONS: Mapping[str, Conversion] = {conversion.name: conversion for conversion in (_TFLITE, _OPENVINO)}


def conversion_named(name: str, precision: Precision = "fp32") -> Conversion:
    """The conversion of this name; InputError if there is none, it cannot write this precision, or what it needs is not
    installed."""
    if name not in CONVERSIONS:
        raise unknown_name("format", name, CONVERSIONS)
    CONVERSIONS[name].require(precision)
    return CONVERSIONS[name]


def with_fixed_sizes(model: ModelProto, input_size: Sequence[int] = (), *, where: object = "ONNX model") -> ModelProto:
    """A copy of the model in which every size of its inputs and outputs is a number: the batch is the one that the file
    has, or 1 where it leaves it open.

    InputError as `with_input_size`, and where a size of an output cannot be inferred.
    """
    sized = with_input_size(model, input_size, where=where)
    return with_batch(sized, static_batch(sized) or 1, where=where)


def with_batch(model: ModelProto, batch: int, *, where: object = "ONNX model") -> ModelProto:
    """A copy of the model whose open sizes, of its batch alone, are this one; InputError as `with_input_shapes`."""
    shapes = {
        spec.name: tuple(size if isinstance(size, int) else batch for size in spec.shape) for spec in input_specs(model)
    }
    return with_input_shapes(model, shapes, where=where)


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
