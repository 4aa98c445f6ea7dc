"""Estimated latency of a network on a device that need not be here: its work over the rates of a device profile.

A node takes as long as its multiply-adds at the rate of their shape, or as its weights at the bandwidth of memory,
whichever is longer (a roofline: weights come while others are multiplied with); and besides, the activations that it
reads and writes, the reordering of data in front of it, and being started. A network takes the sum of its nodes. Pure
functions; nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from onnx import ModelProto

from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.devices.figures import MoveKind
from edgeprune.errors import InputError
from edgeprune.profiling.estimating.node_work import NodeWork, node_works
from edgeprune.profiling.layer_times import ModelLayers, match_layers

_DIGITS = 6


class LayerEstimate(msgspec.Struct, frozen=True):
    """One layer with its Gathers, the reordering that it needs, and what is computed along with it."""

    name: str
    dense_ms: float | None
    """Null without a baseline, or where the dense network has no such layer."""
    pruned_ms: float
    bound: str
    """What most of `pruned_ms` is: compute, memory, reorder or dispatch."""


class Estimate(msgspec.Struct, frozen=True):
    """Dense against pruned on a device, estimated: nothing of this was measured."""

    device: str
    """The device profile's name."""
    source: str
    """How sure the figures are that it is computed from."""
    threads: int
    batch_size: int
    dense_ms: float | None
    pruned_ms: float
    speedup: float | None
    layers: tuple[LayerEstimate, ...] = ()


@dataclass(frozen=True)
class NodeEstimate:
    """Estimated seconds of one node."""

    work: NodeWork
    compute: float
    """Of its multiply-adds."""
    weights: float
    """Of reading its weights, which goes on beside the multiply-adds."""
    moving: float
    """Of reading and writing activations."""
    reorder: float
    dispatch: float

    @property
    def seconds(self) -> float:
        return math.fsum(self.parts.values())

    @property
    def parts(self) -> Mapping[str, float]:
        """What the seconds are made of."""
        computing = self.compute >= self.weights
        return {
            "compute": self.compute if computing else 0.0,
            "memory": self.moving + (0.0 if computing else self.weights),
            "reorder": self.reorder,
            "dispatch": self.dispatch,
        }


def estimate(
    dense: ModelProto | None, pruned: ModelProto, profile: DeviceProfile, batch: int = 1, threads: int = 1
) -> Estimate:
    """Dense and pruned network on a device with so many threads, one a core (a GPU works as a whole).

    InputError if the batch does not fit the models, `threads` are none or more than the device has cores.
    """
    nodes = estimate_nodes(pruned, profile, batch, threads)
    before = () if dense is None else estimate_nodes(dense, profile, batch, threads)
    pruned_ms, dense_ms = total_ms(nodes), total_ms(before) if dense is not None else None
    return Estimate(
        device=profile.name,
        source=certainty_of(profile, threads),
        threads=threads if profile.kind == "cpu" else 1,
        batch_size=batch,
        dense_ms=None if dense_ms is None else round(dense_ms, _DIGITS),
        pruned_ms=round(pruned_ms, _DIGITS),
        speedup=round(dense_ms / pruned_ms, _DIGITS) if dense_ms and pruned_ms else None,
        layers=_layers(dense, pruned, before, nodes, batch),
    )


def estimate_nodes(
    model: ModelProto, profile: DeviceProfile, batch: int = 1, threads: int = 1
) -> tuple[NodeEstimate, ...]:
    """Every node's estimate, in the model's order. InputError as `estimate`."""
    if threads < 1 or (profile.kind == "cpu" and threads > profile.cores):
        raise InputError(
            f"{threads} threads on {profile.name}",
            expected=f"1 to {profile.cores}, one a core",
            remedy="pass --threads",
        )
    costs = profile.execution
    reorders = costs is not None and "reorder" in costs.bandwidths
    works = node_works(model, batch, profile.channel_block.fp32, reorders=reorders)
    weights = math.fsum(work.weight_bytes for work in works)
    rates = _Rates(profile, threads, profile.bytes_per_s_of(threads, weights))
    return tuple(rates.estimate(work) for work in works)


def total_ms(nodes: Sequence[NodeEstimate]) -> float:
    """Milliseconds of a network: its nodes run one after the other."""
    return math.fsum(node.seconds for node in nodes) * 1e3


def certainty_of(profile: DeviceProfile, threads: int = 1) -> str:
    """In words, how sure the figures are that an estimate by this profile stands on, and what it lacks."""
    used = ("peak_gflops_fp32", "core_", "memory", "channel_block", "execution")
    found = {figure.certainty for key, figure in profile.figures().items() if key.startswith(used)}
    sure = [name for name in ("measured", "published", "derived", "uncertain") if name in found]
    words = f"estimate from {', '.join(sure[:-1])}{' and ' if sure[:-1] else ''}{sure[-1]} figures of {profile.name}"
    if not profile.execution:
        return f"{words}, all at their peak: it takes at least so long"
    return f"{words}; without what threads wait for each other" if threads > 1 and profile.kind == "cpu" else words


@dataclass(frozen=True)
class _Rates:
    """The rates of so many threads of one device for one network."""

    profile: DeviceProfile
    threads: int
    weights: float
    """Bytes of weights a second: from run to run they stay in cache only if all of them fit."""

    def estimate(self, work: NodeWork) -> NodeEstimate:
        profile, costs = self.profile, self.profile.execution
        compute, reorder = 0.0, 0.0
        if work.kernel is not None:
            kind, filters, width, depth, _ = work.kernel
            share = costs.share(kind, filters, width, depth) if costs else 1.0
            compute = work.macs / (profile.macs_per_s_of(self.threads) * share)
        what: MoveKind = "gather" if work.op_type == "Gather" else "operation"
        if work.reorders and costs and "reorder" in costs.bandwidths:
            each = work.reordered_bytes / work.reorders
            reorder = work.reordered_bytes / profile.bytes_per_s_of(self.threads, each, "reorder")
        return NodeEstimate(
            work,
            compute=compute,
            weights=work.weight_bytes / self.weights,
            moving=work.moved_bytes / profile.bytes_per_s_of(self.threads, work.moved_bytes, what),
            reorder=reorder,
            dispatch=costs.dispatch_us.value * 1e-6 * work.launches if costs else 0.0,
        )


def _layers(
    dense: ModelProto | None,
    pruned: ModelProto,
    before: Sequence[NodeEstimate],
    after: Sequence[NodeEstimate],
    batch: int,
) -> tuple[LayerEstimate, ...]:
    """A row for every layer of the pruned model."""
    layers = ModelLayers.of(pruned, batch).layers
    matched = match_layers(ModelLayers.of(dense, batch).layers, layers) if dense is not None else {}
    dense_parts, pruned_parts = _by_layer(before), _by_layer(after)
    rows = []
    for layer in layers:
        parts, old = pruned_parts[layer.name], matched.get(layer.name)
        dense_ms = math.fsum(dense_parts[old.name].values()) * 1e3 if old else None
        rows.append(
            LayerEstimate(
                layer.name,
                None if dense_ms is None else round(dense_ms, _DIGITS),
                round(math.fsum(parts.values()) * 1e3, _DIGITS),
                max(parts, key=lambda part: parts[part]),
            )
        )
    return tuple(rows)


def _by_layer(nodes: Sequence[NodeEstimate]) -> dict[str, dict[str, float]]:
    """Seconds of each layer, by what they are spent on."""
    found: dict[str, dict[str, float]] = {}
    for node in nodes:
        own = found.setdefault(node.work.layer, {})
        for part, seconds in node.parts.items():
            own[part] = own.get(part, 0.0) + seconds
    return found
