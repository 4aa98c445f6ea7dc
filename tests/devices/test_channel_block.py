"""Which convolutions ONNX Runtime's blocked kernels take: the rule against the graphs that the runtime itself makes."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.devices.channel_block import is_off_block, reads_blocks, round_up
from edgeprune.devices.this_machine import this_machine_block

ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
CONVOLUTIONS = [
    (1, 3, 64),
    (1, 10, 32),
    (1, 48, 50),
    (1, 50, 48),
    (1, 52, 48),
    (1, 62, 64),
    (2, 16, 16),
    (2, 16, 24),
    (2, 24, 16),
    (4, 32, 16),
    (8, 8, 8),
    (52, 1, 1),
    (54, 1, 1),
    (64, 1, 1),
]
"""Groups, inputs and filters a group."""


def is_run_blocked(groups: int, inputs: int, filters: int, folder: Path) -> bool:
    """Whether ONNX Runtime replaces such a convolution by one on blocks of channels."""
    weight = np.ones((groups * filters, inputs, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer", group=groups, pads=[1] * 4)
    shapes = {"x": (1, groups * inputs, 8, 8), "y": (1, groups * filters, 8, 8)}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph([node], "one layer", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a graph is of this machine alone
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimized.onnx").graph.node
    return any(node.op_type == "Conv" and "nchwc" in node.domain for node in nodes)


@pytest.mark.skipif(not ON_X86, reason="what is known of ONNX Runtime's blocked kernels is of x86")
@pytest.mark.parametrize(("groups", "inputs", "filters"), CONVOLUTIONS)
def test_the_rule_is_what_onnx_runtime_does(groups: int, inputs: int, filters: int, tmp_path: Path) -> None:
    block = this_machine_block()
    assert reads_blocks(groups, inputs, filters, block) == is_run_blocked(groups, inputs, filters, tmp_path)


@pytest.mark.parametrize(("groups", "inputs", "filters"), CONVOLUTIONS)
def test_without_a_block_nothing_is_off_it(groups: int, inputs: int, filters: int) -> None:
    assert not is_off_block(groups, inputs, filters, 1)
    assert not reads_blocks(groups, inputs, filters, 1)


def test_ungrouped_convolutions_are_filled_up_instead() -> None:
    assert not is_off_block(1, 50, 54, 16)
    assert [round_up(count, 16) for count in (1, 16, 17)] == [16, 16, 32]
