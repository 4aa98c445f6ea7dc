"""A plan in ONNX's own words: device configurations and sharding, which ONNX has since IR version 11.

A result that lies in equal parts along its channels on devices in their order is sharded along that axis; one that is
whole on some devices has these. Parts of unequal size cannot be told so: they, and all others, stand in each node's
metadata as `edgeprune.channels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from onnx import ModelProto, NodeDeviceConfigurationProto

from edgeprune.partitioning.planning import channels as ch
from edgeprune.partitioning.planning.channels import Parts
from edgeprune.partitioning.planning.search import Step
from edgeprune.partitioning.written import Written

IR_VERSION = 11
CONFIGURATION = "edgeprune"
CHANNELS = "edgeprune.channels"
_AXIS = 1


def annotated(model: ModelProto, written: Written, names: Sequence[str]) -> ModelProto:
    """A copy of the model that says which device of these names computes what of each node."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, IR_VERSION)
    del copy.configuration[:]
    copy.configuration.add(name=CONFIGURATION, num_devices=len(names), device=names)
    steps = {step.role.key: step for step in written.division.steps}
    stages: dict[str, int] = {}
    for part in written.subgraphs:
        for op in part.ops:
            stages.setdefault(op.key, part.stage)
    for node in copy.graph.node:
        if step := steps.get(node.output[0] if node.output else ""):
            del node.device_configurations[:]
            node.device_configurations.append(_configuration(step, stages))
            node.metadata_props.add(key=CHANNELS, value=_told(step.choice.parts, names))
    return copy


def _configuration(step: Step, stages: Mapping[str, int]) -> NodeDeviceConfigurationProto:
    role, choice = step.role, step.choice
    found = NodeDeviceConfigurationProto(configuration_id=CONFIGURATION)
    if role.key in stages:  # a Gather that only chooses among what is sent is computed nowhere
        found.pipeline_stage = stages[role.key]
    for name in filter(None, role.node.output):
        _add_spec(found, name, choice.parts, role.channels, _AXIS)
    sliced, parts, whole = role.sliced, choice.parts, role.channels
    if choice.addends:
        sliced, parts, whole = role.summed, choice.addends, role.reads[role.source]
        _add_spec(found, role.source, parts, whole, _AXIS)
    for place, axis in sliced.items():
        _add_spec(found, role.node.input[place], parts, whole, axis)
    return found


def _add_spec(found: NodeDeviceConfigurationProto, tensor: str, parts: Parts, whole: int, axis: int) -> None:
    holders = [device for device, part in enumerate(parts) if part]
    is_whole = all(parts[device] == ch.whole(whole) for device in holders)
    bounds = [whole * place // len(holders) for place in range(len(holders) + 1)] if holders else []
    shards = [ch.run(start, stop) for start, stop in pairwise(bounds)]
    is_even = not whole % max(len(holders), 1) and [parts[device] for device in holders] == shards
    if not (is_whole or is_even):
        return
    spec = found.sharding_spec.add(tensor_name=tensor, device=holders)
    if not is_whole:
        spec.sharded_dim.add(axis=axis).simple_sharding.add(dim_value=whole, num_shards=len(holders))


def _told(parts: Parts, names: Sequence[str]) -> str:
    """Such as `a 0:96; b 96:128`."""
    runs = (",".join(f"{start}:{stop}" for start, stop in ch.runs(part)) for part in parts)
    return "; ".join(f"{name} {run}" for name, run in zip(names, runs, strict=True) if run)
