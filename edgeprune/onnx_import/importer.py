"""From an ONNX file to a torch network of ordinary layers, held against the file in ONNX Runtime.

What the file computes from constants and shapes alone becomes a constant; each other node becomes what the table of
operations says. The names of layers, inputs and outputs are those of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto
from torch import fx

from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.onnx_files.constants import Constants
from edgeprune.onnx_files.graph import TensorSpec, is_standard, used_values
from edgeprune.onnx_files.inputs import input_specs, static_batch, with_input_size
from edgeprune.onnx_files.model import load_model
from edgeprune.onnx_files.shapes import concrete_types, shape_constants
from edgeprune.onnx_import.batch import with_open_batch
from edgeprune.onnx_import.building import Building
from edgeprune.onnx_import.node import OnnxNode
from edgeprune.onnx_import.ops.table import OPS
from edgeprune.onnx_import.parity import difference

ANY_BATCH = (1, 2)
"""Two batch sizes, between which what grows with the batch shows."""


@dataclass(frozen=True)
class Imported:
    """An ONNX file as a torch network."""

    module: fx.GraphModule
    """In eval mode."""
    model: ModelProto
    """The file, with its weights inside and the sizes of its image fixed."""
    input_shape: tuple[int, int, int]
    """(channels, height, width) of one image."""
    input_name: str
    output_names: tuple[str, ...]
    batch: int | None
    """The one batch size that the network runs at; None for any."""


def import_onnx(path: str | Path, input_size: Sequence[int] = ()) -> Imported:
    """The network of a file. `input_size` is (H, W) or (C, H, W) where the file leaves these open.

    Raises InputError for what is no network of one image that torch can run, naming node and operation; GateError if
    the network in torch does not compute what ONNX Runtime computes.
    """
    model = with_input_size(load_model(path), input_size, where=path)
    spec, batch, runs_at = _image(model, path), static_batch(model), None
    shape = (_size(spec, 1), _size(spec, 2), _size(spec, 3))
    try:
        module = build(model if batch is None else with_open_batch(model, batch), ANY_BATCH)
        _require_parity(path, model, module, shape, tuple(size * (batch or 1) for size in ANY_BATCH))
    except (InputError, GateError):
        if batch not in (None, 1):
            raise
        module, runs_at = build(model, (1,)), 1  # which says what is wrong, if it is not the batch
        _require_parity(path, model, module, shape, (1,))
        progress.note(f"{path}: runs on a batch of 1 alone: `export` needs --static-batch")
    names = tuple(value.name for value in model.graph.output)
    return Imported(module, model, shape, spec.name, names, runs_at)


def _require_parity(
    path: str | Path, model: ModelProto, module: fx.GraphModule, shape: tuple[int, int, int], batches: tuple[int, ...]
) -> None:
    if reason := difference(model, module, shape, batches, fixed=static_batch(model)):
        raise GateError(f"{path}: the import is not what the file computes: {reason}")


def build(model: ModelProto, batches: tuple[int, ...]) -> fx.GraphModule:
    """The network of a model with these batch sizes (one, or two), not yet held against the file."""
    types = {batch: concrete_types(model, batch) for batch in batches}
    constants = [Constants(model.graph, model, known=shape_constants(model, types[batch])) for batch in batches]
    held = constants[0]
    building = Building(model, types, held, constants[-1])
    (image,) = (spec.name for spec in input_specs(model))
    building.values[image] = building.graph.placeholder("x")
    needed = _needed(model, held)
    for proto in model.graph.node:
        is_read = any(name in needed for name in proto.output)
        if is_read and proto.name not in building.done and proto.output[0] not in held:
            _translate(OnnxNode(proto, building), needed)
    outputs = tuple(building.tensor(value.name) for value in model.graph.output)
    building.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    return fx.GraphModule(building.root, building.graph, "OnnxNetwork").eval()


def _translate(node: OnnxNode, needed: set[str]) -> None:
    if not is_standard(node.proto) or node.op not in OPS:
        raise node.refused("edgeprune cannot write it in torch")
    result = OPS[node.op](node)
    results = result if isinstance(result, tuple) else (result,)
    for name, value in zip(node.proto.output, results, strict=False):
        node.building.values.setdefault(name, value)
    unknown = [name for name in node.proto.output[len(results) :] if name in needed]
    if unknown:
        raise node.refused(f"its output {unknown[0]!r} is read, which torch does not give")


def _needed(model: ModelProto, held: Constants) -> set[str]:
    """The values that the outputs depend on, constants and what these are made of left out."""
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output) and node.output[0] not in held:
            needed |= used_values(node)
    return needed


def _image(model: ModelProto, path: str | Path) -> TensorSpec:
    """The one input of a network of images; InputError if it has another."""
    specs = input_specs(model)
    shown = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in specs)
    if len(specs) != 1 or len(specs[0].shape) != 4 or not specs[0].is_batched:
        raise InputError(f"takes {shown}", where=path, expected="one input with images, (N, C, H, W)")
    if np.dtype(specs[0].dtype) != np.float32:
        raise InputError(f"takes {shown}", where=path, expected="images in float32", remedy="export it in float32")
    return specs[0]


def _size(spec: TensorSpec, axis: int) -> int:
    size = spec.shape[axis]
    assert isinstance(size, int), "with_input_size leaves none open"
    return size
