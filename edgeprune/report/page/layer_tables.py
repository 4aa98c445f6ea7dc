"""The report's tables of single layers: measured, estimated, left dense."""

from __future__ import annotations

from edgeprune.io import formatting as f
from edgeprune.plans.plan import Plan
from edgeprune.profiling.estimating.estimates import Estimate
from edgeprune.profiling.result import LayerResult, Result
from edgeprune.report.document import Table, columns
from edgeprune.report.words.results import setting


def estimate_layers_table(one: Estimate) -> Table:
    """What most of each layer's estimated time is."""
    names = ("layer", "estimated dense ms", "estimated pruned ms", "mostly")
    rows = tuple(
        (f.shortened(f.clean(x.name), 64), f.bare_ms(x.dense_ms), f.bare_ms(x.pruned_ms), f.clean(x.bound))
        for x in one.layers
    )
    where = f"{f.clean(one.device)}, batch {one.batch_size}, {f.plural(one.threads, 'thread')}"
    return Table(f"Estimated layers on {where}: not measured", columns(*names, numeric=names[1:3]), rows, folded=True)


def layer_table(result: Result, *, folded: bool) -> Table:
    """Every layer, with the cause where it falls short; such rows are flagged."""
    bounded, mixed = any(x.bound_share is not None for x in result.layers), len(result.providers) > 1
    names = ("layer", "form", "MACs dense", "MACs", "dense ms", "pruned ms", "theory", "real", "efficiency")
    names = (*names, *(("of the roof",) if bounded else ()), *(("ran on",) if mixed else ()), "cause")
    rows = tuple(
        (
            f.shortened(f.clean(layer.name), 64),
            layer_form(layer),
            f.count(layer.dense_macs),
            f.count(layer.macs),
            f.bare_ms(layer.dense_ms),
            f.bare_ms(layer.pruned_ms),
            f.times(layer.theoretical_speedup),
            f.times(layer.realistic_speedup),
            f.percent(layer.efficiency),
            *((f.percent(layer.bound_share),) if bounded else ()),
            *((f.clean(layer.provider) or f.NONE,) if mixed else ()),
            f.harmless(layer.cause),
        )
        for layer in result.layers
    )
    slow = frozenset(
        number
        for number, layer in enumerate(result.layers)
        if layer.cause and layer.theoretical_speedup != 1 and layer.efficiency is not None
    )
    return Table(f"Layers on {setting(result)}", columns(*names, numeric=names[2 : 9 + bounded]), rows, folded, slow)


def layer_form(layer: LayerResult) -> str:
    """dense, or how many groups of what: 4 x 32→16; another lowering than grouped is named."""
    if layer.lowering == "dense":
        return "dense"
    named = "" if layer.lowering == "grouped" else f"{f.clean(layer.lowering)} "
    return f"{named}{layer.groups}\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}{layer.in_per_group}→{layer.out_per_group}"


def dense_table(plan: Plan) -> Table:
    """What stayed as it was, one reason a row. In a plan that thins, a layer without a reason follows its channels."""
    by_reason: dict[str, list[str]] = {}
    for entry in plan.layers:
        if entry.is_dense and not entry.kept_filters and (entry.note or not plan.thins):
            by_reason.setdefault(f.clean(entry.note) or "the plan gives no reason", []).append(f.clean(entry.name))
    rows = tuple((reason, str(len(names)), f.some(names)) for reason, names in by_reason.items())
    title = "Layers that keep all filters" if plan.thins else "Layers that the plan left dense"
    return Table(title, columns("reason", "layers", "which", numeric=("layers",)), rows)
