"""torch -> ONNX through the current exporter, cleaned for deployment.

Convolution and linear nodes carry their layer's name, Gathers the name of the layer that they serve, so that times and
lowerings can be mapped back. No metadata of the exporter is left: it holds stack traces with local paths.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from edgeprune.errors import InputError, first_line
from edgeprune.exporters.decomposed import decomposed
from edgeprune.exporters.function_table import keep_function_table
from edgeprune.exporters.options import OLDEST_OPSET, ExportOptions
from edgeprune.onnx_files.model import INLINE_LIMIT

OUTPUT = "output"


def to_onnx(module: nn.Module, example_input: Tensor, options: ExportOptions | None = None) -> onnx.ModelProto:
    """Export a folded module (eval mode) with an example input of shape (N, C, H, W), N >= 2 if the batch is dynamic.

    Raises InputError if torch cannot export the module, or not at the opset that was asked for.
    """
    options = options or ExportOptions()
    dynamic = ({0: torch.export.Dim("batch")},) if options.dynamic_batch else None
    try:
        with _quiet(), torch.no_grad():
            program = _translated(module.eval(), example_input, dynamic, options)
    except Exception as error:
        raise InputError(
            f"torch.onnx cannot export this model: {_root_cause(error)}",
            expected="a forward without branches on tensor values",
            remedy="change what the message names; --static-batch helps where it names the batch",
        ) from error
    model: onnx.ModelProto = program.model_proto
    strip_metadata(model)
    name_nodes(model)
    if options.simplify and model.ByteSize() < INLINE_LIMIT:
        model = _simplified(model)
    if len(model.graph.output) == 1 and not options.output_names:
        _rename_value(model, model.graph.output[0].name, OUTPUT)
    check_opset(model, options.opset)
    if options.dynamic_batch:
        check_batch(model)
    return model


def _translated(module: nn.Module, example_input: Tensor, dynamic: Any, options: ExportOptions) -> Any:
    """What torch's exporter makes of the module, by the short way where that leads there."""
    export = functools.partial(
        torch.onnx.export, dynamo=True, opset_version=options.opset, dynamic_shapes=dynamic, verbose=False,
        input_names=[options.input_name], output_names=list(options.output_names) or None, external_data=False,
    )  # fmt: skip
    keep_function_table()
    # The exporter by itself has other ways to capture a module, and says what is wrong where none leads anywhere.
    with contextlib.suppress(Exception):
        program = decomposed(module, example_input, dynamic)
        if program is not None:
            return export(program)
    return export(module, (example_input,))


def check_opset(model: onnx.ModelProto, asked: int) -> None:
    """InputError if the file has not the opset that was asked for (the exporter cannot go below 18)."""
    got = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if got != asked:
        raise InputError(
            f"asked for opset {asked}, the exporter wrote opset {got}",
            expected=f"{OLDEST_OPSET} or later, as far as onnx {onnx.__version__} goes",
            remedy="leave out --opset",
        )


def check_batch(model: onnx.ModelProto) -> None:
    """InputError if the exporter took the batch of the example input for a constant: it does so without a word."""
    fixed = [value.type.tensor_type.shape.dim[0].dim_value for value in model.graph.input[:1]]
    if fixed and fixed[0]:
        raise InputError(
            f"the exporter fixed the batch at {fixed[0]}: the forward makes a number of it, as len(x) and int(...) do",
            expected="a forward for any batch, such as x.view(x.shape[0], -1)",
            remedy="change it, or pass --static-batch",
        )


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove everything that the exporter noted about where the model came from."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in part:
            item.doc_string = ""
            del item.metadata_props[:]
    model.producer_name, model.producer_version = "edgeprune", ""


def name_nodes(model: onnx.ModelProto) -> None:
    """Name Conv and Gemm nodes after their layers, and Gathers over channels after the layer they serve."""
    weights = {initializer.name for initializer in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    makers: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
        for name in node.output:
            makers[name] = node
    taken: set[str] = set()

    def rename(node: onnx.NodeProto, name: str) -> None:
        if name not in taken:
            taken.add(name)
            node.name = name

    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in weights:
            rename(node, node.input[1].removesuffix(".weight"))
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] in weights and _axis(node) == 1:
            served = [user for user in users.get(node.output[0], []) if user.op_type == "Conv"]
            maker = makers.get(node.input[0])
            if served:
                rename(node, f"{served[0].name}.input_gather")
            elif maker is not None and maker.op_type == "Conv":
                rename(node, f"{maker.name}.output_gather")


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    with _quiet():
        result: tuple[onnx.ModelProto, bool] = onnxsim.simplify(model)
    simplified, same = result
    if not same:  # onnxsim compares outputs itself; the unsimplified model is right in any case
        return model
    strip_metadata(simplified)
    return simplified


def _rename_value(model: onnx.ModelProto, old: str, new: str) -> None:
    if old == new or any(new in node.output for node in model.graph.node):
        return
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in model.graph.output:
        if value.name == old:
            value.name = new


def _root_cause(error: BaseException) -> str:
    """The first line of the error that started the chain, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's prints, warnings and log lines; its errors still arrive."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
