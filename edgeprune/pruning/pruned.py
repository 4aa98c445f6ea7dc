"""A pruned network: method and rewriter on a network, optional fine-tuning, and its place in a bundle."""

from __future__ import annotations

import copy
import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from edgeprune.bundles.bundle import Bundle
from edgeprune.bundles.manifest import Accuracy, Count, Healing
from edgeprune.bundles.names import CLUSTERING, DENSE_WEIGHTS, PLAN, WEIGHTS
from edgeprune.datasets.images import Dataset
from edgeprune.devices.device_profile import load_profile
from edgeprune.devices.this_machine import this_machine_block
from edgeprune.errors import GateError, InputError, first_line
from edgeprune.graph import Graph
from edgeprune.io import progress
from edgeprune.methods import amount_flags, load_method, needs_images, one_shot, parse_settings
from edgeprune.methods.base import MethodResult
from edgeprune.methods.on_images import Clock
from edgeprune.methods.shared.reconstruction import Reconstruction
from edgeprune.modules.hooks import check_own_hooks
from edgeprune.plans.costs import off_block_note, planned_macs, planned_params
from edgeprune.plans.gather_free import without_gathers
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.method_record import FILE_NAME as METHOD_RECORD
from edgeprune.plans.plan import Plan, load_plan
from edgeprune.pruning.healing import Healer, loss_gradients
from edgeprune.pruning.images import Images, accuracy_of
from edgeprune.pruning.layerwise import Calibration
from edgeprune.pruning.method_inputs import FromImages, method_input
from edgeprune.pruning.network import (
    Network,
    bundle_arch,
    layer_weights,
    load_network,
    load_tickets,
    network_in,
    save_source,
)
from edgeprune.pruning.options import DataOptions, NetworkSource, PruneOptions
from edgeprune.pruning.summary import LayerSummary, PruneSummary
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace
from edgeprune.training.evaluation import evaluate
from edgeprune.training.loop import fit

MakeClock = Callable[[Network, Graph, PruneOptions], Clock]


@dataclass(frozen=True)
class Pruned:
    """A network after a method and the rewriter, perhaps fine-tuned."""

    network: Network
    graph: Graph
    plan: Plan
    model: nn.Module
    """The rewritten model, in eval mode."""
    result: MethodResult
    seconds: float = 0.0
    accuracy: Accuracy | None = None
    calibration_images: int = 0
    """That the method, or healing, looked at."""
    healing: Healing | None = None

    @property
    def macs(self) -> Count:
        """Multiply-adds a sample."""
        return Count(self.graph.macs, sum(planned_macs(self.plan, self.graph).values()))

    @property
    def params(self) -> Count:
        return Count(self.graph.params, planned_params(self.plan, self.graph))

    @property
    def notes(self) -> dict[str, str]:
        """Layer -> what the plan says of it, or else of the coupled set that it writes."""
        of_sets = {entry.name: entry.note for entry in self.plan.sets}
        return {
            entry.name: entry.note or of_sets.get(self.graph.layer(entry.name).writes, "") for entry in self.plan.layers
        }

    def summary(self) -> PruneSummary:
        kept, notes = KeptChannels(self.plan, self.graph), self.notes
        return PruneSummary(
            macs=self.macs,
            params=self.params,
            plan_sha256=self.plan.sha256(),
            seconds=round(self.seconds, 3),
            peak_rss_mb=round(peak_rss_mb(), 1),
            accuracy=self.accuracy,
            calibration_images=self.calibration_images,
            healing=self.healing,
            layers=tuple(
                LayerSummary(
                    e.name,
                    e.groups,
                    e.kept,
                    round(self.result.seconds.get(e.name, 0.0), 4),
                    notes[e.name],
                    len(kept.filters(self.graph.layer(e.name)).index),
                    self.result.recovery.get(e.name),
                )
                for e in self.plan.layers
            ),
        )


def prune_network(
    network: Network,
    options: PruneOptions,
    data: DataOptions | None = None,
    images: Images | None = None,
    seen: Dataset | None = None,
    make_clock: MakeClock | None = None,
) -> Pruned:
    """Trace, let the method decide, rewrite. The network is left as it is.

    With images (and how to fine-tune on them), the method is given what it asks for: gradients, and fine-tuning between
    its decisions. `seen`: images for a method that refits layers on them, where there is nothing else to do with any.
    `make_clock`: for a budget of time.
    """
    options.check()
    decider = one_shot(options.method)
    settings = parse_settings(options.method, options.assignments)
    started = time.perf_counter()
    check_own_hooks(network.model, network.example_input(1))
    graph = trace(network.model, network.example_input(1)).graph
    tickets = load_tickets(options.tickets, network) if options.tickets else []
    seen = images.seen if images is not None else seen
    changed, known = _from_images(network, graph, data, images)
    looked_at = 0
    if seen is not None and needs_images(load_method(options.method)):
        changed = Calibration(network.model, seen)
        known = FromImages(calibration=changed)
        looked_at = len(seen)
    clock = make_clock(network, graph, options) if make_clock and options.request.budget.is_timed else None
    given = method_input(load_method(options.method), network.model, graph, options.request, tickets, known, clock)
    result = decider.prune(given, settings)
    if not options.request.allows_gathers:
        result = _without_gathers(result, graph)
    weights = changed.model if changed else network.model
    if options.reconstruct and seen is not None:
        weights, looked_at = reconstructed(weights, result.plan, network, graph, seen), len(seen)
    pruned = carried_out(result, weights, network, graph, started, options.device_profile)
    return dataclasses.replace(pruned, calibration_images=looked_at)


def _without_gathers(result: MethodResult, graph: Graph) -> MethodResult:
    plan = without_gathers(result.plan, graph)
    recovery = {name: share for name, share in result.recovery.items() if name in plan.grouped()}
    return dataclasses.replace(result, plan=plan, recovery=recovery)


def reconstructed(weights: nn.Module, plan: Plan, network: Network, graph: Graph, seen: Dataset) -> nn.Module:
    """What a plan leaves of these weights, each layer fitted in turn to what the dense one gave; in the original shape.

    InputError where channels are merged or constant: what is left of them stands for others.
    """
    if any(entry.merged or entry.constant for entry in plan.sets):
        raise InputError(f"--reconstruct does not fit channels that {plan.method} merged", remedy="leave it out")
    left = masked(rewrite(weights, plan, graph), network.model, plan, graph)
    start = copy.deepcopy(network.model)
    start.load_state_dict(left.state_dict(), strict=False)  # it may have masks behind zero paddings beside the tensors
    work, fit_anew = Calibration(network.model, seen), Reconstruction(plan, graph, layer_weights(network.model))
    work.refit(fit_anew.names, fit_anew, start=start)
    return work.model


def carried_out(
    result: MethodResult, weights: nn.Module, network: Network, graph: Graph, started: float, device_profile: str = ""
) -> Pruned:
    """The network pruned as the method decided, with the weights of a model of the same architecture that was trained
    since; `started` is the clock (time.perf_counter) at which the method began."""
    for text in result.notes:
        progress.note(text)
    note_off_block(result.plan, graph, device_profile)
    model = rewrite(weights, result.plan, graph).eval()
    return Pruned(network, graph, result.plan, model, result, time.perf_counter() - started)


def note_off_block(plan: Plan, graph: Graph, device_profile: str = "") -> None:
    """Say which layers will not be as fast as their MACs promise, before they are exported: on the type of device that
    the network is for, by default on this machine."""
    block, device = this_machine_block(), "this machine"
    if device_profile:
        profile = load_profile(device_profile)
        block, device = profile.channel_block.fp32, profile.name
    if slow := off_block_note(plan, graph, block, amount_flags(plan.method), device):
        progress.note(slow)


def _from_images(
    network: Network, graph: Graph, data: DataOptions | None, images: Images | None
) -> tuple[Healer | Calibration | None, FromImages]:
    """What changes the network for a method, and what the method sees of the images."""
    if data is None or images is None:
        return None, FromImages()
    calibration = images.calibration
    gradients = loss_gradients(network.model, calibration) if calibration else {}
    if images.train is None:
        return None, FromImages(gradients)
    healer = Healer(network.model, graph, images.train, data.training(epochs=1), calibration)
    return healer, FromImages(gradients, healer)


def with_accuracy(pruned: Pruned, options: DataOptions, images: Images | None) -> Pruned:
    """Fine-tune if asked, and measure top-1 of the dense and the pruned network; GateError past `max_drop`."""
    if images is None:
        return pruned
    test, dense = images.test, images.dense
    after = before = evaluate(pruned.model, test)
    if images.train is not None:
        tuned = fit(pruned.model, images.train, options.training(options.finetune_epochs)).model
        pruned = dataclasses.replace(pruned, model=tuned)
        after = evaluate(tuned, test)
    accuracy = accuracy_of(dense, after, options.data, before=before.value if options.finetune_epochs else None)
    if options.max_drop is not None and not accuracy.drop() <= options.max_drop:
        written = "{:.4g}" if accuracy.metric else "{:.2f}"
        fell, points = ("went", "") if accuracy.metric else ("fell", " points")
        was, is_ = written.format(dense.value), written.format(after.value)
        raise GateError(
            f"{dense.name} {fell} from {was} to {is_}, more than --max-drop {options.max_drop}{points}: prune less "
            "(--rate, --budget) or fine-tune longer (--finetune-epochs)"
        )
    return dataclasses.replace(pruned, accuracy=accuracy)


def save_pruned(pruned: Pruned, stage: Path) -> None:
    """Write the plan, what the method recorded, and both networks' weights into a staged bundle."""
    (stage / PLAN).write_bytes(pruned.plan.to_readable_json())
    for name, data in pruned.result.records.items():
        (stage / name).write_bytes(data)
    save_weights(pruned.model, stage / WEIGHTS)
    save_weights(pruned.network.model, stage / DENSE_WEIGHTS)
    save_source(pruned.network, stage)


def open_pruned(bundle: Bundle, *, arch: str = "") -> Pruned:
    """The pruned network of a bundle. `arch` is needed where the bundle's is a user's own file: no bundle runs code.

    Raises InputError if a file is missing, damaged, or of another architecture.
    """
    manifest = bundle.manifest
    network = network_in(bundle) or load_network(
        NetworkSource(
            arch or bundle_arch(bundle), random_init=True, input_size=manifest.input_shape,
            num_classes=manifest.num_classes or None,
        )
    )  # fmt: skip
    plan = load_plan(bundle.path(PLAN))
    _load_weights(network.model, bundle.path(DENSE_WEIGHTS))
    graph = trace(network.model, network.example_input(1)).graph
    model = rewrite(network.model, plan, graph).eval()
    _load_weights(model, bundle.path(WEIGHTS))
    kept = (CLUSTERING, METHOD_RECORD)
    records = {name: bundle.path(name).read_bytes() for name in bundle.manifest.files if name in kept}
    return Pruned(
        network, graph, plan, model, MethodResult(plan, records), accuracy=manifest.accuracy,
        calibration_images=manifest.calibration_images, healing=manifest.healing,
    )  # fmt: skip


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's state dict as safetensors."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in model.state_dict().items():
        place = value.untyped_storage().data_ptr()  # safetensors refuses aliases: tied layers are stored once each
        tensors[key] = (value.clone() if place in seen else value).contiguous()
        seen.add(place)
    path.write_bytes(safetensors.torch.save(tensors))


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise InputError(f"does not hold this network's weights: {first_line(error)}", where=path) from error
