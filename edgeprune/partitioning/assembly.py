"""The partition as it is handed out, from a division that is written out: the manifest, and the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from onnx import helper

from edgeprune.partitioning.annotations import annotated
from edgeprune.partitioning.devices import links_in_words
from edgeprune.partitioning.manifest import (
    DeviceEntry,
    LayerParts,
    Partition,
    PartitionManifest,
    Stage,
    TensorInfo,
    Transfer,
)
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.plan import Planner
from edgeprune.partitioning.planning.channels import runs
from edgeprune.partitioning.planning.search import Step
from edgeprune.partitioning.planning.simulate import Span
from edgeprune.partitioning.planning.throughput import predict_throughput
from edgeprune.partitioning.prediction import Predicted, Throughput, TimelineSpan
from edgeprune.partitioning.written import Written
from edgeprune.profiling.estimating.estimates import certainty_of

Goal = Literal["latency", "throughput"]
"""One frame as soon as possible, or as many as possible."""
_DIGITS = 6


def assembled(written: Written, planner: Planner, goal: Goal) -> Partition:
    """The partition of a division that this planner made."""
    network, names = planner.network, tuple(device.name for device in planner.costs.devices)
    tensors = written.program.tensors
    wanted = {name for part in written.subgraphs for name in part.read} | set(network.outputs)
    throughput = None
    if goal == "throughput":
        throughput = predict_throughput(
            planner.costs, planner.whole_bytes, written.timeline, is_divided=written.is_divided
        )
    manifest = PartitionManifest(
        devices=tuple(_entry(number, written, planner) for number in range(len(names))),
        stages=_stages(written),
        transfers=tuple(
            Transfer(names[move.source], names[move.to], move.tensor, move.bytes, move.stage)
            for move in sorted(written.messages, key=lambda move: move.stage)
        ),
        predicted=_predicted(written, planner, throughput),
        inputs=tuple(_info(spec.name, network) for spec in network.inputs),
        outputs=tuple(_info(name, network) for name in network.outputs),
        layers=tuple(_layer(step, names) for step in written.division.steps if step.role.is_layer),
    )
    models = {part.file: part.to_model(tensors, wanted) for part in written.subgraphs}
    return Partition(manifest, models, annotated(network.model, written, names))


def _layer(step: Step, names: Sequence[str]) -> LayerParts:
    role, choice = step.role, step.choice
    channels, inputs = (
        {name: tuple(runs(part)) for name, part in zip(names, parts, strict=False) if part}
        for parts in (choice.parts, choice.addends)
    )
    return LayerParts(role.node.name, role.units if role.kind == "grouped" else 1, channels, inputs)


def _entry(number: int, written: Written, planner: Planner) -> DeviceEntry:
    device, own = planner.costs.devices[number], [part for part in written.subgraphs if part.device == number]
    return DeviceEntry(
        device.name,
        device.known_profile.name,
        tuple(part.file for part in own),
        sum(part.macs for part in own),
        sum(part.weight_bytes for part in own),
        math.ceil(written.peaks[number]),
        round(written.timeline.busy(number) * 1e3, _DIGITS),
    )


def _stages(written: Written) -> tuple[Stage, ...]:
    """Each divided layer stands in the first stage with a part of it."""
    seen: set[str] = set()
    found = []
    for index in sorted({part.stage for part in written.subgraphs}):
        parts = [part for part in written.subgraphs if part.stage == index]
        layers = dict.fromkeys(op.layer for part in parts for op in part.ops if op.layer and op.layer not in seen)
        seen |= layers.keys()
        kind: Literal["host", "parallel"] = "host" if all(part.device == 0 for part in parts) else "parallel"
        found.append(Stage(index, kind, {part.name: part.file for part in parts}, tuple(layers)))
    return tuple(found)


def _predicted(written: Written, planner: Planner, throughput: Throughput | None) -> Predicted:
    timeline, costs = written.timeline, planner.costs
    names = [device.name for device in costs.devices]
    fits = bool(planner.singles)
    # Where it fits none, the speed-up is over the fastest as if it had the memory.
    alone = planner.singles or dict(enumerate(costs.alone))
    best = min(alone, key=lambda device: (alone[device], device))

    def shown(span: Span) -> TimelineSpan:
        start, end = round(span.start * 1e3, _DIGITS), round(span.end * 1e3, _DIGITS)
        return TimelineSpan(span.kind, names[span.device], names[span.to], span.stage, start, end, span.tensor)

    return Predicted(
        latency_ms=round(timeline.seconds * 1e3, _DIGITS),
        speedup=round(alone[best] / timeline.seconds, _DIGITS) if timeline.seconds else 1.0,
        bytes_per_inference=sum(message.bytes for message in written.messages),
        basis=_basis(planner),
        single_device_ms=round(alone[best] * 1e3, _DIGITS) if fits else None,
        best_device=names[best],
        critical_path=tuple(map(shown, timeline.critical)),
        timeline=tuple(map(shown, timeline.spans)),
        throughput=throughput,
    )


def _basis(planner: Planner) -> str:
    devices = planner.costs.devices
    told = dict.fromkeys(certainty_of(device.known_profile, device.used_threads) for device in devices)
    return f"{'; '.join(told)}; {links_in_words(devices)}; FP32, batch {planner.network.batch}; not measured"


def _info(name: str, network: Network) -> TensorInfo:
    known = network.type_of(name)
    return TensorInfo(name, str(helper.tensor_dtype_to_np_dtype(known.elem_type)), known.dims)
