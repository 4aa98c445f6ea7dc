"""Many frames: whole ones on each device, or parts of each on all, whichever is predicted to be faster."""

from __future__ import annotations

import math

from edgeprune.partitioning.planning.costs import Costs
from edgeprune.partitioning.planning.simulate import Timeline
from edgeprune.partitioning.prediction import Throughput


def predict_throughput(costs: Costs, whole_bytes: float, timeline: Timeline, *, is_divided: bool) -> Throughput:
    """Of these devices, by a plan's predicted run.

    Whole frames: each device that has the memory computes frames alone; the host sends the inputs and gets the outputs
    one after the other. Pipeline: a result comes as often as the busiest device or link allows.
    """
    able = [device for device, limit in enumerate(costs.limits) if whole_bytes <= limit]
    whole = _whole_frames(costs, able) if able else None
    pipeline = 1 / timeline.bottleneck() if is_divided and timeline.bottleneck() else None
    names = tuple(device.name for device in costs.devices)
    if whole is not None and (pipeline is None or whole >= pipeline):
        return Throughput("whole_frames", whole, tuple(names[device] for device in able), whole, pipeline)
    return Throughput("pipeline", pipeline or 0.0, names, whole, pipeline)


def _whole_frames(costs: Costs, devices: list[int]) -> float:
    """Frames a second; no more than the host's own link carries."""
    network = costs.network
    inputs = sum(network.type_of(spec.name).bytes for spec in network.inputs)
    outputs = sum(network.type_of(name).bytes for name in network.outputs)
    rates, budget = [], 1.0
    local = [device for device in devices if device == 0]
    rates += [1 / costs.alone[0]] * len(local)
    # The host sends and receives at the same time: the larger of the two fills its link.
    for device in sorted(set(devices) - {0}, key=lambda one: costs.alone[one]):
        per_frame = max(inputs * costs.links[0][device][0], outputs * costs.links[device][0][0])
        rate = min(1 / costs.alone[device], budget / per_frame if per_frame else math.inf)
        rates.append(rate)
        budget -= rate * per_frame
    return math.fsum(rates)
