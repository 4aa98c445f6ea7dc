"""A device with round figures, and networks whose times on it can be done by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.devices.figures import Bandwidths, ChannelBlock, ExecutionCosts, Figure, KernelRates

SOURCES = ("measured", "a test")


def rates(by_filters: dict[int, float], **more: dict[int, float]) -> KernelRates:
    return KernelRates(by_filters, *SOURCES, **more)


COSTS = ExecutionCosts(
    dispatch_us=Figure(10, *SOURCES),
    rates={"spatial": rates({16: 0.5, 32: 1.0}), "off_block": rates({1: 0.1}), "depthwise": rates({1: 0.25})},
    bandwidths={
        "operation": Bandwidths({1: 4.0, 3: 2.0}, *SOURCES),
        "gather": Bandwidths({1: 0.5}, *SOURCES),
        "reorder": Bandwidths({1: 0.25}, *SOURCES),
    },
)
DEVICE = DeviceProfile(
    name="made-up",
    description="a device with round figures",
    kind="cpu",
    cores=4,
    channel_block=ChannelBlock(16, *SOURCES),
    peak_gflops_fp32=Figure(8, *SOURCES),  # 10^9 multiply-adds a second on each core
    memory_gb_per_s=Figure(1, *SOURCES),
    link=load_profile("raspberry-pi-5").link,
    execution=COSTS,
)


@dataclass(frozen=True)
class Conv:
    """A 3x3 convolution on squares, or 1x1."""

    inputs: int
    filters: int
    groups: int = 1
    size: int = 3

    def node(self, source: str, target: str) -> tuple[NodeProto, TensorProto]:
        weight = np.zeros((self.filters, self.inputs // self.groups, self.size, self.size), np.float32)
        node = helper.make_node("Conv", [source, f"{target}.weight"], [target], target, group=self.groups)
        node.attribute.append(helper.make_attribute("pads", [self.size // 2] * 4))
        return node, numpy_helper.from_array(weight, f"{target}.weight")


def network(*layers: Conv | NodeProto, channels: int, side: int = 8, output: str = "") -> ModelProto:
    """Convolutions, each on the value of what stands in front, called conv0, conv1 ..., and other nodes."""
    nodes, tensors, value = [], [], "input"
    for number, layer in enumerate(layers):
        if isinstance(layer, Conv):
            node, weight = layer.node(value, f"conv{number}")
            tensors.append(weight)
        else:
            node = layer
        nodes.append(node)
        value = node.output[0]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", channels, side, side])]
    outputs = [helper.make_tensor_value_info(output or value, TensorProto.FLOAT, [None] * 4)]
    graph = helper.make_graph(nodes, "network", inputs, outputs, tensors)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def relu(source: str, target: str) -> NodeProto:
    return helper.make_node("Relu", [source], [target], target)
