"""From an ONNX file to the files of another runtime: one table of what can be written.

Importing this module loads neither torch nor any of the runtimes; what a conversion needs is loaded when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from onnx import ModelProto

from edgeprune.devices.this_machine import is_importable
from edgeprune.errors import InputError, unknown_name
from edgeprune.exporters.fixed_sizes import with_batch, with_fixed_sizes, with_input_shapes
from edgeprune.exporters.options import IO_LAYOUTS, ConvertOptions, IoLayout
from edgeprune.io.arrays import Array, Feeds
from edgeprune.precision.formats import Precision
from edgeprune.precision.weight_bits import WeightBits, weight_bits

__all__ = [
    "CONVERSIONS",
    "ONNX",
    "Conversion",
    "ConvertOptions",
    "conversion_for",
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
    run_on: Callable[[Path, Sequence[Feeds]], Ran] | None
    """The outputs of a written file for several inputs in turn, by the ONNX file's names and in its shapes, computed by
    the runtime that the file is for. What parity is measured on. None where that is ONNX Runtime, whose runner lies
    above this module."""
    target: str = ""
    """Of edgeprune's targets the one that runs such files; empty where that is `cpu`, which runs the ONNX file."""
    notes: Callable[[Path], tuple[str, ...]] = _no_notes
    """What whoever runs a written file should know, in sentences without an end."""
    beside: tuple[str, ...] = ()
    """Suffixes of what lies beside the file, under the same name."""
    fixes_sizes: bool = True
    """Whether its files are for one size of inputs, the batch included."""
    writes_fp32: bool = True
    layouts: tuple[IoLayout, ...] = IO_LAYOUTS
    """Of inputs and outputs that it can write; the first where nobody asks."""
    also: Mapping[Precision, Need] = field(default_factory=dict)
    """Precisions besides FP32 that it can write, and what each needs besides."""
    int8_weight_bits: Callable[[WeightBits], int] = weight_bits
    """Bits that the weights get in INT8; InputError for what the format cannot hold."""

    @property
    def has_layouts(self) -> bool:
        """Whether the format leaves `ConvertOptions.io_layout` open."""
        return len(self.layouts) > 1

    def require(self, precision: Precision = "fp32") -> None:
        """InputError if it cannot write this precision, or if what it needs is not installed."""
        own = Need(self.module, self.extra)
        known: dict[Precision, Need] = {**({"fp32": own} if self.writes_fp32 else {}), **self.also}
        if precision not in known:
            raise InputError(
                f"files for {self.runtime} are not written in {precision}",
                where=f"--to {self.name}",
                expected=f"--precision {' or '.join(known)}",
            )
        for needed in (own, known[precision]):
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

    def run(self, path: Path, feeds: Feeds) -> dict[str, Array]:
        """As `run_on`, for one input."""
        assert self.run_on is not None, "a format of another runtime than ONNX Runtime"
        return self.run_on(path, [feeds]).outputs[0]

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


def _run_tflite(path: Path, feeds: Sequence[Feeds]) -> Ran:
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


def _to_ncnn(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.exporters.ncnn.network import ncnn_network

    network = ncnn_network(model)
    return {".param": network.param().encode(), ".bin": network.weights()}


def _run_ncnn(path: Path, feeds: Sequence[Feeds]) -> Ran:
    from edgeprune.exporters.ncnn.runtime import run_file

    return Ran(tuple(run_file(path, one) for one in feeds), {})


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
    run_on=_run_tflite,
    target="litert",
    notes=_notes_on_tflite,
    also={"int8": Need("ai_edge_quantizer", "litert-int8")},
    int8_weight_bits=_tflite_weight_bits,
)

_NCNN = Conversion(
    name="ncnn",
    runtime="ncnn",
    suffix=".param",
    folder="ncnn",
    module="ncnn",
    extra="ncnn",
    convert=_to_ncnn,
    run_on=_run_ncnn,
    target="ncnn",
    beside=(".bin",),
    layouts=("nchw",),
)


def _to_openvino(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.exporters.openvino.ir import to_ir

    files: Mapping[str, bytes] = to_ir(model, options)
    return files


def _run_openvino(path: Path, feeds: Sequence[Feeds]) -> Ran:
    from edgeprune.exporters.openvino.ir import run_ir

    outputs, formats = run_ir(path, feeds)
    return Ran(tuple(outputs), formats)


_OPENVINO = Conversion(
    name="openvino",
    runtime="OpenVINO",
    suffix=".xml",
    folder="openvino",
    module="openvino",
    extra="openvino",
    convert=_to_openvino,
    run_on=_run_openvino,
    target="openvino-native",
    beside=(".bin",),
    layouts=("nchw",),
    also=dict.fromkeys(("fp16", "int8"), Need("openvino", "openvino")),
)


def _to_int8_onnx(model: ModelProto, options: ConvertOptions) -> Mapping[str, bytes]:
    from edgeprune.precision.quantization import to_int8

    eight = to_int8(model, options.batches, bits=options.weight_bits, fp32_layers=options.fp32_layers)
    return {".onnx": eight.SerializeToString(deterministic=True)}


ONNX = Conversion(
    name="onnx",
    runtime="ONNX Runtime",
    suffix=".onnx",
    folder="",
    module="onnxruntime",
    extra="",
    convert=_to_int8_onnx,
    run_on=None,
    fixes_sizes=False,
    writes_fp32=False,
    layouts=("nchw",),
    also={"int8": Need("onnxruntime", "")},
)
"""For INT8 alone: in FP32 the file is there."""

CONVERSIONS: Mapping[str, Conversion] = {one.name: one for one in (_TFLITE, _NCNN, _OPENVINO, ONNX)}


def conversion_named(name: str, precision: Precision = "fp32") -> Conversion:
    """The conversion of this name; InputError if there is none, it cannot write this precision, or what it needs is not
    installed."""
    if name not in CONVERSIONS:
        raise unknown_name("format", name, CONVERSIONS)
    CONVERSIONS[name].require(precision)
    return CONVERSIONS[name]


def conversion_for(target: str) -> Conversion | None:
    """That to the format which the target's runtime is given; None where it takes ONNX files, or a bundle's weights."""
    return next((one for one in CONVERSIONS.values() if one.target == target), None) if target else None
