"""A .tflite file being written: tensors, constants and operators, in LiteRT's own schema.

Same calls, same bytes. What is equal is stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_ALIGNMENT = 16
"""Bytes, of each constant in the file, as the schema demands and Python's flatbuffers do not see to."""
_TYPES: Mapping[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}
DTYPES = frozenset(_TYPES)
"""Element types that a tensor may have here."""
_LAST_OLD_CODE = 127
"""Operators beyond it have no place in the schema's first field for codes."""
_PLAIN_OPTIONS: Mapping[str, str] = {
    "CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "AVERAGE_POOL_2D": "Pool2D", "MAX_POOL_2D": "Pool2D",
    "MEAN": "Reducer", "SUM": "Reducer", "REDUCE_MAX": "Reducer", "REDUCE_MIN": "Reducer", "PADV2": "PadV2",
    "BATCH_MATMUL": "BatchMatMul", "MAXIMUM": "MaximumMinimum", "MINIMUM": "MaximumMinimum",
    "CONCATENATION": "Concatenation",
}  # fmt: skip
"""Operator -> its table of options, where that is not the operator's name in camel case."""
_VERSIONS: Mapping[str, int] = {
    "FULLY_CONNECTED": 5, "TRANSPOSE_CONV": 3, "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3, "STRIDED_SLICE": 1,
    "BATCH_MATMUL": 1, "GELU": 1,
}  # fmt: skip
"""First version of each operator in which it does what is written here; 1 for the others."""


class _Buffer:
    """The data of one constant, which packs itself aligned."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def Pack(self, builder: Any) -> int:  # noqa: N802  # as the schema's own classes are packed
        place = None
        if self.data:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            place = builder.EndVector()
        schema.BufferStart(builder)
        if place is not None:
            schema.BufferAddData(builder, place)
        return int(schema.BufferEnd(builder))


class TfliteFile:
    """One network: tensors and operators are added in the order in which they run."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers: list[_Buffer] = [_Buffer(b"")]  # the schema's buffer of all that is no constant
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._by_content: dict[bytes, int] = {}
        self.sources: list[str] = []
        """Of each operator, the ONNX node that it is for."""

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        """A tensor that an operator, or the caller, will fill; returns its number."""
        return self._added(name, shape, dtype, 0)

    def constant(self, name: str, values: NDArray[Any]) -> int:
        """A tensor with these values (float32, int32, int64 or bool); one that has them already is used again."""
        data = np.ascontiguousarray(values).tobytes()
        digest = hashlib.blake2b(data, digest_size=20).digest()
        key = (str(values.dtype), values.shape, digest)
        if key not in self._constants:
            if digest not in self._by_content:
                self._by_content[digest] = self._buffer(data)
            self._constants[key] = self._added(name, values.shape, str(values.dtype), self._by_content[digest])
        return self._constants[key]

    @property
    def tensors(self) -> int:
        """How many there are; the next one has this number."""
        return len(self._tensors)

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self._tensors[tensor].shape)

    def dtype(self, tensor: int) -> str:
        return next(name for name, kind in _TYPES.items() if kind == self._tensors[tensor].type)

    def rename(self, tensor: int, name: str) -> None:
        self._tensors[tensor].name = name

    def operator(
        self,
        operator: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, Any],
        *,
        source: str,
        version: int = 0,
    ) -> None:
        """Add an operator, spelt as LiteRT's schema does, with its options; `source` is the ONNX node's name."""
        code = self._codes.setdefault((operator, version or _VERSIONS.get(operator, 1)), len(self._codes))
        entry = schema.OperatorT(opcodeIndex=code, inputs=list(inputs), outputs=list(outputs))
        table = f"{_PLAIN_OPTIONS.get(operator, _camel_case(operator))}Options"
        kind = getattr(schema.BuiltinOptions, table, None)
        if kind is not None:
            entry.builtinOptionsType = kind
            entry.builtinOptions = getattr(schema, f"{table}T")(**options)
        self._operators.append(entry)
        self.sources.append(source)

    def finished(self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, bytes]) -> bytes:
        """The file's bytes; inputs and outputs by the names under which the file's signature has them."""
        self._name_apart([*inputs.values(), *outputs.values()])
        graph = schema.SubGraphT(
            tensors=self._tensors, inputs=list(inputs.values()), outputs=list(outputs.values()),
            operators=self._operators, name="main",
        )  # fmt: skip
        signature = schema.SignatureDefT(_maps(inputs), _maps(outputs), "serving_default", 0)
        entries = [schema.MetadataT(name, self._buffer(data)) for name, data in sorted(metadata.items())]
        model = schema.ModelT(
            version=_SCHEMA_VERSION, operatorCodes=[_code(*key) for key in self._codes], subgraphs=[graph],
            description="edgeprune", buffers=self._buffers, metadata=entries, signatureDefs=[signature],
        )  # fmt: skip
        return _packed(model)

    def _name_apart(self, first: Sequence[int]) -> None:
        """Give each tensor a name of its own: LiteRT's quantiser knows tensors by their names. Those in `first` keep
        theirs."""
        taken: set[str] = set()
        for number in dict.fromkeys([*first, *range(len(self._tensors))]):
            tensor = self._tensors[number]
            name, count = tensor.name, 1
            while tensor.name in taken:
                count += 1
                tensor.name = f"{name}:{count}"
            taken.add(tensor.name)

    def _added(self, name: str, shape: Sequence[int], dtype: str, buffer: int) -> int:
        sizes = [int(size) for size in shape]
        self._tensors.append(schema.TensorT(shape=sizes, type=_TYPES[dtype], buffer=buffer, name=name))
        return len(self._tensors) - 1

    def _buffer(self, data: bytes) -> int:
        self._buffers.append(_Buffer(data))
        return len(self._buffers) - 1


def repacked(data: bytes, metadata: Mapping[str, bytes]) -> bytes:
    """A file from elsewhere as this module packs it, with these entries of its metadata changed: what lay behind the
    flatbuffer, as in some files of LiteRT's tools, is inside of it then."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    buffers = [_Buffer(_content(buffer, data)) for buffer in model.buffers]
    for entry in model.metadata:
        name = entry.name.decode()
        if name in metadata:
            buffers[entry.buffer] = _Buffer(metadata[name])
    model.buffers = buffers
    return _packed(model)


def _content(buffer: Any, data: bytes) -> bytes:
    if buffer.offset > 1:  # as the schema has it: 0 and 1 say that the data is inside
        return data[buffer.offset : buffer.offset + buffer.size]
    return b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()


def _packed(model: Any) -> bytes:
    graph = model.subgraphs[0]
    size = sum(len(buffer.data) for buffer in model.buffers)
    builder = flatbuffers.Builder(size + 1024 * (len(graph.tensors) + len(graph.operators) + 16))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _code(operator: str, version: int) -> Any:
    number = getattr(schema.BuiltinOperator, operator)
    return schema.OperatorCodeT(min(number, _LAST_OLD_CODE), None, version, number)


def _maps(values: Mapping[str, int]) -> list[Any]:
    return [schema.TensorMapT(name, tensor) for name, tensor in values.items()]


def _camel_case(operator: str) -> str:
    return "".join(part.capitalize() for part in operator.split("_"))
