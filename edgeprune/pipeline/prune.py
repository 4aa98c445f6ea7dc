"""`edgeprune prune`: checkpoint -> model -> traced graph -> plan -> rewritten model (-> healed) (-> fine-tuned)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.writing import new_bundle, write_manifest
from edgeprune.errors import GateError
from edgeprune.io import progress
from edgeprune.pipeline.output import Output

SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
"""Of the dense latency, among which --max-drop looks for the least where nobody says how much to prune."""

if TYPE_CHECKING:
    from edgeprune.pruning.options import DataOptions, NetworkSource, PruneOptions
    from edgeprune.pruning.pruned import Pruned


def prune(source: NetworkSource, options: PruneOptions, data: DataOptions, out: Output) -> tuple[Bundle, Pruned]:
    """`edgeprune prune`: a bundle with the plan and the pruned weights. Of several ranks all but the first end
    (SystemExit) before anything is written."""
    out.check_by_first()
    for given in (source, options, data):
        given.check()
    from edgeprune.deployment.exporting import manifest_of  # torch: not before all that can be checked without it
    from edgeprune.pruning.pruned import save_pruned
    from edgeprune.training.collectives import leave_to_first

    pruned = prune_source(source, options, data)
    leave_to_first()
    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        save_pruned(pruned, stage)
        write_manifest(stage, manifest_of(pruned))
    return open_bundle(out.folder), pruned


def prune_source(source: NetworkSource, options: PruneOptions, data: DataOptions) -> Pruned:
    from edgeprune.deployment.clock import clock_for
    from edgeprune.methods import load_method, parse_settings, require_images
    from edgeprune.pruning.healed import healed
    from edgeprune.pruning.images import load_images
    from edgeprune.pruning.network import load_network
    from edgeprune.pruning.pruned import prune_network, with_accuracy

    method, settings = load_method(options.method), parse_settings(options.method, options.assignments)
    require_images(method, given=bool(data.data), reconstruct=options.reconstruct)
    network = load_network(source)
    images = load_images(data, network, method, settings, reconstruct=options.reconstruct)

    def at(options: PruneOptions) -> Pruned:
        pruned = prune_network(network, options, data, images, make_clock=clock_for)
        pruned = healed(pruned, data, images.seen if images else None)
        return with_accuracy(pruned, data, images)

    return fastest(at, options) if data.max_drop is not None and options.request.budget.is_wish else at(options)


def fastest(at: Callable[[PruneOptions], Pruned], options: PruneOptions) -> Pruned:
    """The pruned network of the least latency that passes the gate on accuracy: a bisection over `SHARES`.

    GateError of the largest share if none passes.
    """
    low, high, best = 0, len(SHARES), None
    while low < high:
        middle = (low + high) // 2
        share = SHARES[middle]
        budget = dataclasses.replace(options.request.budget, latency=share)
        progress.note(f"to {share:g} of the dense latency")
        try:
            request = dataclasses.replace(options.request, budget=budget)
            best = at(dataclasses.replace(options, request=request))
            low = middle + 1
        except GateError as error:
            progress.note(str(error))
            if middle == 0:
                raise
            high = middle
    assert best is not None, "the largest share passed, or its error went on"
    return best
