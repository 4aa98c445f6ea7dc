"""What is constant in a model: the tensors that it stores, and everything that is computed from nothing else.

Exporters put weights behind Identity, Cast, Transpose, Reshape, DequantizeLinear or ConstantOfShape. A runtime computes
all that once, when it loads the model; so do we, with ONNX Runtime, and only where the values are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import array, element_bytes, inner_graphs, is_standard
from edgeprune.onnx_files.validity import runtime_sentence

MOST_BYTES = 2**31 - 1
"""Of all values that are computed for one constant: as many as a model may hold."""
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_OF_RUNTIME = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Operations of ONNX Runtime's own domain that compute the same each time."""


class Constants(Mapping[str, TensorProto]):
    """The constant tensors of one graph by value name. Asking whether a value is constant computes nothing."""

    def __init__(
        self,
        graph: GraphProto,
        model: ModelProto,
        outside: Constants | None = None,
        known: Mapping[str, TensorProto] | None = None,
    ) -> None:
        """`outside`: those of the graph around it, which the nodes of an inner graph read as well; `known`: values of
        which something else than the file says that they are the same in every run, such as shapes at one size."""
        self.stored: dict[str, TensorProto] = dict(outside.stored) if outside else {}
        self.stored.update({tensor.name: tensor for tensor in graph.initializer})
        sparse = ((tensor, tensor.values.name) for tensor in graph.sparse_initializer)
        self.stored.update({name: _dense(tensor, name) for tensor, name in sparse})
        self.stored.update(known or {})
        self.makers: dict[str, NodeProto] = dict(outside.makers) if outside else {}
        """Computed value -> the node that computes it."""
        for node in graph.node:
            if node.op_type == "Constant" and is_standard(node):
                if (value := _constant_value(node)) is not None:
                    self.stored[node.output[0]] = value
            elif node.output and node.output[0] not in self.stored and self._is_computed(node):
                self.makers.update((name, node) for name in node.output if name)
        self._versions, self._ir_version = list(model.opset_import), model.ir_version
        self._values: dict[str, TensorProto] = {}

    def __getitem__(self, name: str) -> TensorProto:
        """The tensor; InputError where ONNX Runtime cannot compute it."""
        if name in self.stored:
            return self.stored[name]
        if name not in self._values:
            if name not in self.makers:
                raise KeyError(name)
            self._values[name] = self._compute(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.stored or name in self.makers

    def __iter__(self) -> Iterator[str]:
        yield from self.stored
        yield from self.makers

    def __len__(self) -> int:
        return len(self.stored) + len(self.makers)

    def _is_computed(self, node: NodeProto) -> bool:
        read = [name for name in node.input if name]
        known = is_standard(node) or (node.domain == "com.microsoft" and node.op_type in _OF_RUNTIME)
        same_each_time = known and node.op_type not in _RANDOM and not any(inner_graphs(node))
        return same_each_time and bool(read) and all(name in self for name in read)

    def _compute(self, name: str) -> TensorProto:
        nodes, held, wanted = dict[int, NodeProto](), dict[str, TensorProto](), [name]
        while wanted:
            value = wanted.pop()
            tensor = self.stored.get(value) or self._values.get(value)
            if tensor is not None:
                held[value] = tensor
            elif (node := self.makers[value]) and id(node) not in nodes:
                nodes[id(node)] = node
                wanted += [read for read in node.input if read]
        ordered = dict.fromkeys(id(node) for node in self.makers.values())
        graph = GraphProto(name="constants", node=[nodes[key] for key in ordered if key in nodes])
        graph.output.append(onnx.ValueInfoProto(name=name))
        _require_small(graph, held, self._versions, name)
        for value, tensor in held.items():
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = value
        model = helper.make_model(graph, ir_version=max(self._ir_version, 4), opset_imports=self._versions)
        return numpy_helper.from_array(_run(model, name), name)


def constants(model: ModelProto) -> Constants:
    """Every constant tensor of the top-level graph by value name: initializers, Constant nodes, and what is computed
    from these alone."""
    return Constants(model.graph, model)


def _run(model: ModelProto, name: str) -> NDArray[np.generic]:
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        value: NDArray[np.generic] = np.asarray(session.run(None, {})[0])
    except Exception as error:  # its exception types share no base class
        raise InputError(
            f"the constant {name!r} cannot be computed: {runtime_sentence(error)}",
            where="ONNX model",
            expected="weights that ONNX Runtime can compute",
            remedy="export the model again with constants folded",
        ) from error
    return value


def _require_small(
    graph: GraphProto, held: Mapping[str, TensorProto], versions: Iterable[onnx.OperatorSetIdProto], name: str
) -> None:
    """InputError where the values between are known to need more memory than any model may hold."""
    light = GraphProto()
    light.CopyFrom(graph)
    for value, tensor in held.items():
        if math.prod(tensor.dims) <= 1024:
            light.initializer.add().CopyFrom(tensor)
            light.initializer[-1].name = value
        else:
            light.input.append(helper.make_tensor_value_info(value, tensor.data_type, tensor.dims))
    model = helper.make_model(light, ir_version=8, opset_imports=list(versions))
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return  # ONNX Runtime will say what is wrong
    total = 0.0
    for value in {known.name: known for known in (*inferred.value_info, *inferred.output)}.values():
        kind = value.type.tensor_type
        if kind.elem_type and kind.elem_type != TensorProto.STRING and kind.HasField("shape"):
            total += element_bytes(kind.elem_type) * math.prod(max(dim.dim_value, 0) for dim in kind.shape.dim)
    if total > MOST_BYTES:
        raise InputError(
            f"the constant {name!r} takes {total / 1e9:.1f} GB to compute",
            where="ONNX model",
            expected="less than 2.1 GB",
        )


def _constant_value(node: NodeProto) -> TensorProto | None:
    attribute = next(iter(node.attribute), None)
    if attribute is None:
        return None
    name = node.output[0]
    if attribute.type == AttributeProto.TENSOR:
        value = TensorProto()
        value.CopyFrom(attribute.t)
        value.name = name
        return value
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return _dense(attribute.sparse_tensor, name)
    dtypes: Mapping[int, Any] = {
        AttributeProto.FLOAT: np.float32,
        AttributeProto.FLOATS: np.float32,
        AttributeProto.INT: np.int64,
        AttributeProto.INTS: np.int64,
        AttributeProto.STRING: object,
        AttributeProto.STRINGS: object,
    }
    if attribute.type not in dtypes:
        return None
    values: NDArray[np.generic] = np.asarray(helper.get_attribute_value(attribute), dtypes[attribute.type])
    return numpy_helper.from_array(values, name)


def _dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    """A tensor that is stored as its values that are not 0, written out; InputError where they do not fit it."""
    values, places, shape = array(sparse.values), array(sparse.indices), tuple(sparse.dims)
    size = math.prod(shape)
    if size * values.itemsize > MOST_BYTES:
        raise InputError(f"the sparse tensor {name!r} of shape {shape} takes too much memory", where="ONNX model")
    try:
        full: NDArray[Any] = np.zeros(size, values.dtype)
        flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), shape)
        full[flat] = values
    except (ValueError, IndexError) as error:
        raise InputError(
            f"the sparse tensor {name!r} has values outside its shape {shape}", where="ONNX model"
        ) from error
    return numpy_helper.from_array(full.reshape(shape), name)
