"""What several verbs print of a bundle: its figures, and its layers with what became of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli.tables import facts, say, table

if TYPE_CHECKING:
    from edgeprune.bundles.bundle import Bundle
    from edgeprune.pruning.pruned import Pruned


def headline(bundle: Bundle) -> None:
    """The headline table of a bundle, what to know of its layers' forms, and where its report lies."""
    from edgeprune.bundles.names import LOWERING, PROFILE
    from edgeprune.lowering.record import load_lowering
    from edgeprune.profiling.result import load_profile_result
    from edgeprune.report.words.forms import cache_sentence
    from edgeprune.report.words.headline import headline_rows

    measured = load_profile_result(bundle.path(PROFILE)) if bundle.has(PROFILE) else None
    lowered = load_lowering(bundle.path(LOWERING)) if bundle.has(LOWERING) else None
    facts(str(bundle.folder), headline_rows(bundle.manifest, measured, lowered))
    for text in filter(None, (cache_sentence(lowered), *lowered.notes) if lowered else ()):
        say(text)
    if bundle.has("report.html"):
        say(f"Report: {bundle.folder / 'report.html'}")


def layers(result: Pruned, bundle: Bundle) -> None:
    """The layers with what became of each, then the headline."""
    from edgeprune.plans.costs import planned_macs
    from edgeprune.plans.kept_channels import KeptChannels

    planned, kept = planned_macs(result.plan, result.graph), KeptChannels(result.plan, result.graph)
    recovery, notes = result.result.recovery, result.notes
    rows = []
    for e in result.plan.layers:
        layer = result.graph.layer(e.name)
        filters = kept.filters(layer)
        left = f"{len(filters.index)} of {filters.channels}"
        rows.append(
            (
                e.name,
                # columns only where the plan or the method has something to say
                *((left,) if result.plan.thins else ()),
                *((e.groups, e.kept or "") if result.plan.grouped() else ()),
                layer.macs,
                planned[e.name],
                *((_share(recovery.get(e.name)),) if recovery else ()),
                notes[e.name],
            )
        )
    names = (
        *(("filters",) if result.plan.thins else ()),
        *(("groups", "kept a group") if result.plan.grouped() else ()),
        *("MACs dense", "MACs pruned"),
        *(("importance kept",) if recovery else ()),
    )
    table("Layers", ("layer", *names, "note"), rows)
    headline(bundle)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
