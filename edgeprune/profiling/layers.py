"""The rows of a profile's layers: their times, taken in turn, beside MACs, bytes, the device's bound and a cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from edgeprune.devices.roofline import Roofline
from edgeprune.io.arrays import Feeds
from edgeprune.profiling.explaining.causes import Cause, bound_share, dense_words, explain
from edgeprune.profiling.explaining.facts import LayerFacts
from edgeprune.profiling.layer_times import LayerInfo, LayerTime, attribute_times, match_layers, median_time
from edgeprune.profiling.result import LayerResult
from edgeprune.profiling.setup import Batch, ProfileOptions, Which
from edgeprune.runners.base import ProfiledRunner

LAYER_BLOCKS = 5
"""Times of layers are taken in so many turns, dense and pruned alternating; the median of the turns counts."""
LAYER_ITERATIONS = 20
"""Runs at most of each turn: the trace of every node's times grows with them."""
BELIEVED = 1.1
"""Share of a device's peak above which its profile cannot be right."""


@dataclass(frozen=True)
class LayerTimes:
    """Times of the layers by name, and of everything else together, of each model. Empty where nobody took them."""

    layers: Mapping[Which, Mapping[str, LayerTime]] = field(default_factory=dict)
    others: Mapping[Which, float] = field(default_factory=dict)
    provider: str = ""
    """What the target stands for, as the runtime spells it."""


def time_layers(
    runners: Mapping[Which, ProfiledRunner], feeds: Mapping[Which, Feeds], batch: Batch, options: ProfileOptions
) -> LayerTimes:
    """Times of the layers and of all else, the median of `LAYER_BLOCKS` turns."""
    iterations = min(max(options.iterations // LAYER_BLOCKS, 1), LAYER_ITERATIONS)
    turns: dict[Which, list[tuple[dict[str, LayerTime], float]]] = {which: [] for which in runners}
    for _ in range(LAYER_BLOCKS):
        for which, runner in runners.items():
            model = batch.pruned if which == "pruned" or batch.dense is None else batch.dense
            nodes = runner.profile_nodes(feeds[which], iterations)
            original = {node.name: runner.original_node(node.name) for node in nodes}
            turns[which].append(attribute_times(nodes, original, model.owners, runner.provider))
    times: dict[Which, dict[str, LayerTime]] = {}
    for which, turn in turns.items():
        taken = [layers for layers, _ in turn]
        common = [name for name in taken[0] if all(name in layers for layers in taken)]
        times[which] = {name: median_time([layers[name] for layers in taken]) for name in common}
    others = {which: median(other for _, other in turn) for which, turn in turns.items()}
    return LayerTimes(times, others, runners["pruned"].provider)


def layer_rows(batch: Batch, times: LayerTimes = LayerTimes()) -> tuple[LayerResult, ...]:
    """One row for every layer of the pruned model; `times` may lack any of them."""
    before = match_layers(batch.dense.layers, batch.pruned.layers) if batch.dense else {}
    dense_times, pruned_times = times.layers.get("dense", {}), times.layers.get("pruned", {})
    return tuple(
        _row(
            batch,
            _Layer(layer, dense, dense_times.get(dense.name) if dense else None, pruned_times.get(layer.name)),
            times.provider,
        )
        for layer in batch.pruned.layers
        for dense in [before.get(layer.name)]
    )


def above_peak(rows: Sequence[LayerResult], roofline: Roofline | None) -> list[str]:
    """A sentence if a layer multiplies faster than the device is said to: the bounds of all are then too low."""
    shares = {
        row.name: roofline.compute_ms(row.executed_macs) / row.pruned_ms for row in rows if roofline and row.pruned_ms
    }
    fastest = max(shares, key=lambda name: shares[name], default="")
    if roofline is None or not fastest or shares[fastest] <= BELIEVED:
        return []
    return [
        f"{fastest} runs at {shares[fastest]:.0%} of the peak of device profile {roofline.device}: it is not of this "
        "machine, and all bounds are too low; name a better one with --machine-profile"
    ]


@dataclass(frozen=True)
class _Layer:
    """A layer of the pruned model, the dense layer that it was, and the times of both where they are known."""

    pruned: LayerInfo
    dense: LayerInfo | None
    dense_time: LayerTime | None
    pruned_time: LayerTime | None

    @property
    def noise(self) -> float | None:
        return max((time.noise for time in (self.dense_time, self.pruned_time) if time), default=None)


def _row(batch: Batch, layer: _Layer, provider: str) -> LayerResult:
    info, dense, dense_time, time = layer.pruned, layer.dense, layer.dense_time, layer.pruned_time
    planned = batch.planned(info)
    theoretical = over(dense.macs, planned) if dense else None
    realistic = over(dense_time.total, time.total) if dense_time and time else None
    facts = _facts(batch, layer, provider)
    cause = _cause(batch, layer, facts)
    roofline = batch.machine.roofline
    return LayerResult(
        name=info.name,
        op_type=info.op_type,
        lowering=_lowering(batch, info),
        groups=info.groups,
        in_per_group=info.in_per_group,
        out_per_group=info.out_per_group,
        dense_macs=dense.macs if dense else None,
        macs=planned,
        executed_macs=info.macs,
        dense_ms=rounded(dense_time.total if dense_time else None),
        pruned_ms=rounded(time.total if time else None),
        gather_ms=rounded(time.gather if time else None),
        reorder_ms=rounded(time.reorder if time else None),
        theoretical_speedup=rounded(theoretical),
        realistic_speedup=rounded(realistic),
        efficiency=rounded(over(realistic, theoretical)),
        noise=rounded(layer.noise),
        cause=cause.words if cause else "",
        cause_kind=cause.kind if cause else "",
        bytes_moved=info.bytes_moved,
        intensity=rounded(over(2 * info.macs, info.bytes_moved)),
        bound_ms=rounded(roofline.bound_ms(info.macs, info.bytes_moved) if roofline else None),
        bound_share=rounded(bound_share(facts, roofline) if facts else None),
        provider=time.provider if time else "",
    )


def _facts(batch: Batch, layer: _Layer, provider: str) -> LayerFacts | None:
    """What the causes need to know; None for a layer without a time."""
    info, dense, dense_time, time = layer.pruned, layer.dense, layer.dense_time, layer.pruned_time
    if time is None or not time.total:
        return None
    planned = batch.planned(info)
    return LayerFacts(
        groups=info.groups,
        in_per_group=info.in_per_group,
        out_per_group=info.out_per_group,
        macs=planned,
        executed_macs=info.macs,
        bytes_moved=info.bytes_moved,
        pruned_ms=time.total,
        gather_ms=time.gather,
        reorder_ms=time.reorder,
        dense_ms=dense_time.total if dense_time else None,
        theoretical=over(dense.macs, planned) if dense else None,
        noise=layer.noise or 0.0,
        note=batch.pair.notes.get(info.name, ""),
        is_pruned=_is_pruned(batch, layer),
        lowering=_lowering(batch, info),
        is_conv=info.op_type == "Conv",
        nodes=max(time.nodes, 1),
        moves=time.moves,
        products=info.products,
        provider=time.provider,
        wanted_provider=provider,
    )


def _cause(batch: Batch, layer: _Layer, facts: LayerFacts | None) -> Cause | None:
    if facts is not None and (facts.efficiency is not None or layer.dense is None):
        return explain(facts, batch.machine)
    note = batch.pair.notes.get(layer.pruned.name, "")
    if note and layer.pruned.groups == 1 and (layer.dense is None or not _is_pruned(batch, layer)):
        return Cause("kept", dense_words(note))
    return None


def _lowering(batch: Batch, layer: LayerInfo) -> str:
    return batch.pair.lowerings.get(layer.name, "grouped" if layer.groups > 1 else "dense")


def _is_pruned(batch: Batch, layer: _Layer) -> bool:
    """Whether the plan changed it."""
    dense, pruned = layer.dense, layer.pruned
    return dense is None or _channels(dense) != _channels(pruned) or pruned.name in batch.pair.lowerings


def _channels(layer: LayerInfo) -> tuple[int, int, int]:
    return layer.groups, layer.in_per_group, layer.out_per_group


def over(first: float | None, second: float | None) -> float | None:
    """Their quotient; None where one of them is unknown or 0."""
    return first / second if first and second else None


def rounded(value: float | None) -> float | None:
    """To a millionth: of a millisecond, nothing that a clock tells is lost."""
    return None if value is None else round(value, 6)
