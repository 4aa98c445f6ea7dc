"""`edgeprune prune`: checkpoint -> model -> traced graph -> plan -> rewritten model (-> healed) (-> fine-tuned)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.writing import new_bundle, write_manifest
from edgeprune.pipeline.output import Output

if TYPE_CHECKING:
    from edgeprune.pruning.options import DataOptions, NetworkSource, PruneOptions
    from edgeprune.pruning.pruned import Pruned


def prune(source: NetworkSource, options: PruneOptions, data: DataOptions, out: Output) -> tuple[Bundle, Pruned]:
    """`edgeprune prune`: a bundle with the plan and the pruned weights."""
    for given in (out, source, options, data):
        given.check()
    from edgeprune.deployment.exporting import manifest_of  # torch: not before all that can be checked without it
    from edgeprune.pruning.pruned import save_pruned

    pruned = prune_source(source, options, data)
    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        save_pruned(pruned, stage)
        write_manifest(stage, manifest_of(pruned))
    return open_bundle(out.folder), pruned


def prune_source(source: NetworkSource, options: PruneOptions, data: DataOptions) -> Pruned:
    from edgeprune.methods import load_method, parse_settings, require_images
    from edgeprune.pruning.healed import healed
    from edgeprune.pruning.images import load_images
    from edgeprune.pruning.network import load_network
    from edgeprune.pruning.pruned import prune_network, with_accuracy

    method, settings = load_method(options.method), parse_settings(options.method, options.assignments)
    require_images(method, given=bool(data.data))
    network = load_network(source)
    images = load_images(data, network, method, settings)
    pruned = healed(prune_network(network, options, data, images), data, images.seen if images else None)
    return with_accuracy(pruned, data, images)
