"""TMI-GKP: filters clustered into groups by a scheme that tickets vote for, then grouped kernels chosen greedily.

Per layer: (1) the schemes of `clusterings` divide the filters into groups of equal size; (2) `votes` lets each
ticket score the divisions, and the scheme that most tickets prefer is taken; (3) `grouped_kernels` chooses, in each
group, which input channels stay. The plan holds the filters and input channels of each group in ascending order and
the groups by their smallest filter.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from edgeprune.errors import InputError, unknown_name
from edgeprune.graph import Layer
from edgeprune.io.progress import track
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult, PruneRequest
from edgeprune.methods.shared.groupings import Groupings, kernels_to_group
from edgeprune.methods.shared.reach import Mask, Reach, exchange_note
from edgeprune.methods.tmi_gkp.choice import Choice, Chooser, Policy, allowed_schemes
from edgeprune.methods.tmi_gkp.clusterings import SCHEMES, Scheme
from edgeprune.methods.tmi_gkp.grouped_kernels import select_grouped_kernels, selection_for
from edgeprune.methods.tmi_gkp.on_devices import OnDevices
from edgeprune.methods.tmi_gkp.records import FILE_NAME, Clustering, check_fits, load_clustering
from edgeprune.methods.tmi_gkp.votes import check_tickets, tickets_in_window
from edgeprune.plans.gather_free import needs_gathers
from edgeprune.plans.plan import LayerPlan, Plan

SUMMARY = "Clusters filters by a scheme that earlier checkpoints vote for and keeps the most distinct grouped kernels."
GROUPS, RATE = 8, 0.4375
TAKES = ("--tickets", "--no-share-partitions", "--for-devices")

MAX_THREADS = 4  # each holds a few C_in x C_in matrices: 170 MB where C_in is 2048


@dataclass(frozen=True)
class Settings:
    """The settings of TMI-GKP; `paper` is what the paper uses on CIFAR-10 and ImageNet."""

    schemes: tuple[Scheme, ...] = setting(
        SCHEMES, "clustering schemes that the tickets vote on: spectral, kpca, tsne", paper="spectral,kpca,tsne"
    )
    scheme: Literal["", "spectral", "kpca", "tsne"] = setting(
        "", "use this clustering scheme for every layer, without a vote", paper="none: tickets vote"
    )
    alpha: float = setting(0.5, "weight of the variance's rank in a clustering's score", paper="0.5")
    beta: float | Literal["auto"] = setting(
        "auto",
        "weight of the distance from pruned to kept grouped kernels; auto counts as many pairs in both terms",
        paper="auto; ResNet-56 2; ResNet-32 1",
    )
    gamma_ratio: float = setting(
        0.2, "share of C_in: so many nearest kept grouped kernels count for each pruned one", paper="0.2"
    )
    ticket_window: str = setting(
        "", 'use only tickets of epochs "FIRST:LAST", both included; empty: all', paper="about 35 early epochs"
    )
    ticket_step: int = setting(1, "use every N-th ticket of the window", paper="1; more for large networks")
    granularity: Literal["layer", "block"] = setting(
        "layer", "vote on every layer, or once a block (layers whose names share all but the last part)", paper="layer"
    )
    clusters: str = setting(
        "", "clustering.json of an earlier run: its clusters are used again, without clustering or voting", paper="none"
    )


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """The plan, `clustering.json`, and each layer's seconds.

    A layer stays dense where `dense_reason` says so, where the rate leaves it no grouped kernel or removes none, or
    where it has no form on the request's blocks (`alignment`); its note gives the reason. InputError if that holds for
    all layers, if settings or tickets make no sense, or if weights are not finite. The result depends on the input
    alone, not on the number of cores.
    """
    request, graph = given.request, given.graph
    request.check()
    _check_settings(settings)
    if request.budget.is_given:
        raise InputError("tmi-gkp looks for no --budget", remedy="choose --groups and --rate, or --method gconv")
    if not request.allows_gathers:
        raise needs_gathers("tmi-gkp")  # its groups share channels
    grouped, groupings, reasons = kernels_to_group(given)
    chooser, clusters_sha256, notes = _chooser(given, settings, grouped, groupings)
    devices = _on_devices(given, chooser, grouped)
    entries: list[LayerPlan] = []
    seconds: dict[str, float] = {}
    # One BLAS and OpenMP thread: sums then add up in one order on every machine, and groups share the cores instead.
    with threadpool_limits(limits=1), ThreadPoolExecutor(_threads()) as pool:
        kernels = _Kernels(given, settings, groupings, devices, pool)
        for layer in track(graph.layers, "TMI-GKP", total=len(graph.layers)):
            start = time.perf_counter()
            if reasons[layer.name]:
                entry = LayerPlan(layer.name, note=reasons[layer.name])
            else:
                entry = kernels.layer(layer, chooser.choice(layer))
            entries.append(groupings.recorded(entry))
            seconds[layer.name] = time.perf_counter() - start
    epochs = [ticket.epoch for ticket in chooser.policy.tickets]
    plan = Plan("tmi-gkp", _used_settings(settings, request, clusters_sha256, epochs), request.seed, tuple(entries))
    if devices is not None:
        notes.append(exchange_note(entries, graph, devices.placement))
    record = Clustering(request.groups, request.seed, tuple(epochs), chooser.records())
    return MethodResult(
        plan, {FILE_NAME: record.to_json()}, seconds, (*notes, *groupings.missed(graph), *chooser.notes())
    )


def _on_devices(given: MethodInput, chooser: Chooser, grouped: list[Layer]) -> OnDevices | None:
    if given.request.mixing_price is None:
        return None
    with threadpool_limits(limits=1):
        return OnDevices.of(given, {layer.name: chooser.choice(layer).clusters for layer in grouped})


@dataclass(frozen=True)
class _Kernels:
    """Which grouped kernels a layer's groups keep."""

    given: MethodInput
    settings: Settings
    groupings: Groupings
    devices: OnDevices | None
    pool: Executor

    def layer(self, layer: Layer, choice: Choice) -> LayerPlan:
        taken, clusters = self.groupings.taken[layer.name], choice.clusters
        reach = Reach(taken.kept, np.ones((len(clusters), layer.in_channels), dtype=np.bool_))
        if self.devices is not None:
            clusters, reach = self.devices.placed(layer, clusters, taken)
        inputs = tuple(self.pool.map(partial(self._kept, layer, reach.keep), clusters, reach.allowed))
        note = "; ".join(filter(None, (choice.note, self.groupings.note(layer.name))))
        return LayerPlan(layer.name, clusters, inputs, note)

    def _kept(self, layer: Layer, keep: int, group: tuple[int, ...], allowed: Mask) -> tuple[int, ...]:
        """The input channels that a group reads."""
        channels = np.flatnonzero(allowed)
        if len(channels) == keep:
            return tuple(channels.tolist())
        weight = self.given.weights[layer.name][list(group)][:, channels]  # (filters, allowed, *kernel)
        selection = selection_for(len(channels), keep, self.settings.gamma_ratio, self.settings.beta)
        kept = select_grouped_kernels(weight.swapaxes(0, 1).reshape(len(channels), -1), selection)
        return tuple(channels[list(kept)].tolist())


def _threads() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MAX_THREADS)


def _check_settings(settings: Settings) -> None:
    """InputError for a value that means nothing, however the settings were made."""
    named: list[str] = [*settings.schemes, *([settings.scheme] if settings.scheme else [])]
    for name in named:
        if name not in SCHEMES:
            raise unknown_name("clustering scheme", name, SCHEMES)
    beta = math.inf if isinstance(settings.beta, str) else settings.beta
    checks = (
        ("schemes", bool(settings.schemes), "at least one of spectral, kpca, tsne"),
        ("alpha", math.isfinite(settings.alpha) and settings.alpha >= 0, "0 or a positive number"),
        ("beta", settings.beta == "auto" or (math.isfinite(beta) and beta >= 0), "auto, 0 or a positive number"),
        ("gamma_ratio", 0 < settings.gamma_ratio <= 1, "a share above 0 and at most 1"),
        ("ticket_step", settings.ticket_step >= 1, "an integer of 1 or more"),
        ("granularity", settings.granularity in ("layer", "block"), "layer or block"),
    )
    for name, good, expected in checks:
        if not good:
            raise InputError(f"setting {name} is {getattr(settings, name)!r}", expected=expected)


def _chooser(
    given: MethodInput, settings: Settings, layers: list[Layer], groupings: Groupings
) -> tuple[Chooser, str, list[str]]:
    """What decides each layer's clusters, the hash of the clustering that is reused (or ""), and notes for the user."""
    tickets = tickets_in_window(given.tickets, settings.ticket_window, settings.ticket_step)
    if settings.ticket_window and not tickets:
        raise InputError("ticket_window is set, but there are no tickets", remedy="give --tickets DIR, or leave it out")
    notes: list[str] = []
    recorded, sha256 = None, ""
    groups = {layer.name: groupings.taken[layer.name].groups for layer in layers}
    if settings.clusters:
        recorded, sha256 = load_clustering(Path(settings.clusters))
        check_fits(recorded, given.graph, layers, given.request.groups, groups, settings.clusters)
    schemes = allowed_schemes(settings.schemes, settings.scheme)
    if recorded is None and len(schemes) > 1:
        tickets, note = check_tickets(tickets, given.weights, layers)
        notes += [note] if note else []
    elif tickets:
        why = "a recorded clustering is used" if recorded else f"{schemes[0]} is the only scheme allowed"
        notes.append(f"Tickets were given but have no vote: {why}.")
        tickets = ()
    by_block = settings.granularity == "block"
    policy = Policy(groups, schemes, bool(settings.scheme), tickets, settings.alpha, by_block, recorded)
    return Chooser(given, layers, policy), sha256, notes


def _used_settings(
    settings: Settings, request: PruneRequest, clusters_sha256: str, epochs: list[int]
) -> dict[str, Any]:
    """Every setting with the value that was used, JSON-able and without local paths."""
    unused = ("seed", "prices", "mixing_price")
    values = {f.name: getattr(request, f.name) for f in dataclasses.fields(request) if f.name not in unused}
    return (
        values
        | dataclasses.asdict(settings)
        | {
            **({"prices": request.prices.record()} if request.prices else {}),
            **({"devices": request.mixing_price.record()} if request.mixing_price else {}),
            "skip": list(request.skip),
            "budget": dataclasses.asdict(request.budget),
            "layer_rates": [list(pair) for pair in request.layer_rates],
            "schemes": list(allowed_schemes(settings.schemes, "")),
            "alpha": float(settings.alpha),
            "beta": settings.beta if isinstance(settings.beta, str) else float(settings.beta),
            "gamma_ratio": float(settings.gamma_ratio),
            "clusters": clusters_sha256,
            "tickets": epochs,
        }
    )
