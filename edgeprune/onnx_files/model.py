"""Load, check and save ONNX files.

Models are untrusted: paths inside a file may not leave its folder, and a tensor must hold as many bytes as it says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from edgeprune.errors import InputError, first_line
from edgeprune.onnx_files.graph import all_graphs, element_bytes, fresh_name, inner_graphs
from edgeprune.onnx_files.spelling import as_usual, state_outputs
from edgeprune.onnx_files.validity import check_version, require_valid

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv"})
INLINE_LIMIT = 1_500_000_000
"""Bytes of weights up to which they lie inside the .onnx file; protobuf ends at 2 GiB."""
_MAX_BYTES = 2**31 - 1  # of one protobuf message, and so of a model with its weights inside
_ELEMENT_TYPES = frozenset(TensorProto.DataType.values())
_REMEDY = "export the model again, or name another file"


def load_model(path: str | Path, *, require_conv: bool = True) -> ModelProto:
    """Read and check an ONNX file; external data is read into the model, local functions are inlined.

    Nodes without a name, or with one that is taken, get a new one, so that measurements can be told apart.
    InputError if the file is missing, no ONNX model, invalid, too new for this ONNX Runtime, reads weights from
    outside its folder, or (with `require_conv`) holds no convolution.
    """
    path = Path(path)
    model = parse_model(_read(path), where=path)
    check_version(model, path)
    folder = path.resolve().parent
    outside = (tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL)
    beside = {_external_file(tensor, folder, path) for tensor in outside}
    size = sum(file.stat().st_size for file in (path, *beside))
    if size > _MAX_BYTES:
        raise InputError(f"holds {size / 1e9:.1f} GB with its weights", where=path, expected="less than 2.1 GB")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise InputError(
            f"has unreadable external data: {first_line(error)}",
            where=path,
            expected="its weight files beside it",
            remedy="export the model again with its weights inside",
        ) from error
    return check_model(model, where=path, require_conv=require_conv)


def save_onnx(model: onnx.ModelProto, path: Path, *, inline_limit: int = INLINE_LIMIT) -> None:
    """Check and write the model: weights inside the file below `inline_limit` bytes, else beside it in NAME.data."""
    if model.ByteSize() < inline_limit:
        data = model.SerializeToString(deterministic=True)
        require_valid(model, path.name, data=data, full=True)
        path.write_bytes(data)
        return
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", convert_attribute=False)
    onnx.checker.check_model(str(path), full_check=True)


def parse_model(data: bytes, *, where: object = "ONNX model") -> ModelProto:
    """A model out of the bytes of a file, not checked any further; InputError if they are none."""
    if not data:
        raise InputError("is empty", where=where, expected="an ONNX model", remedy=_REMEDY)
    try:
        model = onnx.load_model_from_string(data, format="protobuf")
    except DecodeError as error:
        raise InputError(
            "is no ONNX model, or is cut short", where=where, expected="an ONNX file", remedy=_REMEDY
        ) from error
    if not model.ir_version or not model.HasField("graph"):
        raise InputError("is no ONNX model", where=where, expected="an ONNX file", remedy=_REMEDY)
    return model


def check_model(model: ModelProto, *, where: object = "ONNX model", require_conv: bool = False) -> ModelProto:
    """The model itself, checked, with functions inlined and nodes named; InputError as for `load_model`."""
    _check_names(model, where)
    check_version(model, where)
    for tensor in _tensors(model):
        _check_size(tensor, where)
    as_usual(model)
    require_valid(model, where)
    if model.functions:
        model = _inlined(model, where)
    name_nodes(model.graph)
    state_outputs(model)
    nodes = (node for graph in all_graphs(model.graph) for node in graph.node)
    if require_conv and not any(node.op_type in CONVOLUTIONS for node in nodes):
        raise InputError(
            "holds no convolution", where=where, expected="a convolutional network", remedy="name another file"
        )
    return model


def as_model(source: str | Path | bytes | ModelProto) -> ModelProto:
    """A checked copy of a model, wherever it lies; InputError as `load_model`."""
    if isinstance(source, str | Path):
        return load_model(source, require_conv=False)
    if isinstance(source, bytes):
        return check_model(parse_model(source))
    copy = ModelProto()
    copy.CopyFrom(source)
    return check_model(copy)


def _inlined(model: ModelProto, where: object) -> ModelProto:
    try:
        return onnx.inliner.inline_local_functions(model)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"has functions that cannot be inlined: {first_line(error)}",
            where=where,
            expected="functions as ONNX defines them",
            remedy="export the model again without functions",
        ) from error


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise InputError("is a folder", where=path, expected="an ONNX file", remedy="name the .onnx file inside it")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, expected="an ONNX file", remedy="check the path") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, expected="an ONNX file") from error


def _external_file(tensor: TensorProto, folder: Path, where: Path) -> Path:
    """The file in which a tensor's values lie; InputError if its path leaves the model's folder."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    escapes = posix.is_absolute() or windows.is_absolute() or windows.drive or ".." in (*posix.parts, *windows.parts)
    target = (folder / location).resolve()
    if not location or escapes or not target.is_relative_to(folder):
        raise InputError(
            f"tensor {tensor.name!r} is to be read from {location!r}",
            where=where,
            expected="a weight file in the model's own folder",
            remedy="export again with weights inside, or beside the model",
        )
    if not target.is_file():
        raise InputError(
            f"tensor {tensor.name!r} needs the file {location!r}",
            where=where,
            expected="it beside the model",
            remedy="copy the weight file along with the model",
        )
    return target


def _check_names(model: ModelProto, where: object) -> None:
    """InputError for a name that is no text (protobuf hands it out as bytes), or a value of an unknown type."""
    for graph in all_graphs(model.graph):
        names = [graph.name, *(tensor.name for tensor in graph.initializer)]
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            names += [value.name, *(dim.dim_param for dim in kind.shape.dim)]
            if kind.elem_type not in _ELEMENT_TYPES:
                raise InputError(
                    f"value {value.name!r} has the unknown element type {kind.elem_type}",
                    where=where,
                    expected="an element type of ONNX",
                    remedy=_REMEDY,
                )
        for node in graph.node:
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            names += [attribute.name for attribute in node.attribute]
        if not all(isinstance(name, str) for name in names):
            raise InputError("holds a name that is no text", where=where, expected="names in UTF-8", remedy=_REMEDY)


def _check_size(tensor: TensorProto, where: object) -> None:
    if tensor.data_type not in _ELEMENT_TYPES:
        raise InputError(
            f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}",
            where=where,
            expected="an element type of ONNX",
            remedy=_REMEDY,
        )
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"tensor {tensor.name!r} has a negative dimension", where=where, expected="sizes of 0 or more")
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING) or not tensor.HasField("raw_data"):
        return  # onnx.checker counts the other fields
    expected = math.ceil(math.prod(tensor.dims) * element_bytes(tensor.data_type))
    if len(tensor.raw_data) != expected:
        raise InputError(
            f"tensor {tensor.name!r} of shape {tuple(tensor.dims)} holds {len(tensor.raw_data)} bytes",
            where=where,
            expected=f"{expected} bytes",
            remedy=_REMEDY,
        )


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _node_tensors(graph.node)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def name_nodes(graph: GraphProto) -> None:
    """Give each node that has no name, or one that is taken, a name of its own (in place). The name of a node inside an
    If, Loop or Scan begins with that node's."""
    taken = {node.name for inner in all_graphs(graph) for node in inner.node}
    _name_nodes(graph, "", taken, set())


def _name_nodes(graph: GraphProto, place: str, taken: set[str], seen: set[str]) -> None:
    for node in graph.node:
        if not node.name or node.name in seen or not node.name.startswith(place):
            base = node.name or f"{node.op_type}_{next(iter(node.output), '')}"
            node.name = fresh_name(base if base.startswith(place) else f"{place}{base}", taken)
        seen.add(node.name)
        for attribute, inner in inner_graphs(node):
            _name_nodes(inner, f"{node.name}/{attribute}/", taken, seen)
