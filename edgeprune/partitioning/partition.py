"""Divide an ONNX network over several devices, such that tensors stay where they are made.

The first device is the host: it gets the inputs, and holds the outputs in the end. Each node is computed by one
device, by all of them, or in parts, whichever is predicted to give the shortest latency (`planning/`); a device fetches
what it lacks from the one that has it. What a device does without waiting for another becomes one ONNX subgraph.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import all_graphs
from edgeprune.onnx_files.model import CONVOLUTIONS
from edgeprune.partitioning.assembly import Goal, assembled
from edgeprune.partitioning.devices import Device, check_devices, load_devices
from edgeprune.partitioning.manifest import (
    Partition,
    PartitionManifest,
    check_partition,
    load_manifest,
    load_partition,
    load_subgraph,
    write_partition,
)
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.plan import Planner
from edgeprune.partitioning.planning.roles import has_own_constants, is_grouped, roles_of

__all__ = [
    "Device",
    "Goal",
    "Partition",
    "PartitionManifest",
    "check_partition",
    "load_devices",
    "load_manifest",
    "load_partition",
    "load_subgraph",
    "partition_model",
    "write_partition",
]


def partition_model(model: ModelProto, devices: Sequence[Device], *, goal: Goal = "latency") -> Partition:
    """Divide `model` over `devices`, the first of which is the host, in the way that is predicted to be fastest.

    Where no division is predicted to beat the best single device, the result is the fastest that divides every grouped
    layer (of a network without any, every dense one), and its `predicted.speedup` says what it costs. A device may get
    nothing; with one device the result is a single subgraph. Bytes, MACs and memory in the manifest are for batch 1 (or
    the batch that the model was exported with); a dynamic batch stays dynamic. `model` is as `load_model` returns it
    and is not changed. InputError if nothing of it can be divided, shapes cannot be inferred, or the devices' memory
    does not suffice.
    """
    check_devices(devices)
    network = Network(model)
    for name in network.outputs:
        if name in network.constants:
            raise InputError(f"output {name!r} is a constant", where="the model", expected="outputs that are computed")
    roles = roles_of(network)
    if len(devices) > 1 and not any(role.is_layer for role in roles):
        raise _nothing_to_divide(network)
    planner = Planner.of(network, roles, devices)
    return assembled(planner.best(), planner, goal)


def _nothing_to_divide(network: Network) -> InputError:
    where = "the model"
    graphs = list(all_graphs(network.model.graph))
    inside = [node for graph in graphs[1:] for node in graph.node if node.op_type in CONVOLUTIONS]
    outside = [node for node in graphs[0].node if node.op_type in CONVOLUTIONS]
    if outside and is_grouped(outside[0]) and has_own_constants(outside[0], network):
        return InputError(
            f"the weight of {outside[0].name!r} does not fit its groups and its input",
            where=where,
            expected="as many filters as a multiple of the groups, which read all channels of the input",
            remedy="export the network again",
        )
    if outside and outside[0].op_type in ("Conv", "QLinearConv"):
        return InputError(
            f"holds no convolution with constant weights: {outside[0].name!r} computes its own while it runs",
            where=where,
            expected="weights that do not depend on the input",
            remedy="export the network with its weights as constants",
        )
    if inside:
        return InputError(
            f"holds no convolution outside of If, Loop and Scan: {inside[0].name!r} lies in one",
            where=where,
            expected="convolutions that every run computes once",
            remedy="export the network for one branch (traced, not scripted)",
        )
    kind = f": {outside[0].name!r} is {outside[0].op_type}" if outside else ""
    return InputError(
        f"holds no layer of a kind that is divided{kind}",
        where=where,
        expected="Conv or QLinearConv, Gemm or MatMul of (N, C), with constant weights",
        remedy="split the network before it is quantised" if outside and "Integer" in outside[0].op_type else "",
    )
