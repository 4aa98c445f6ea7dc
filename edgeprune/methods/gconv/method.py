"""GConv (paper 002): filters and input channels divided into groups so that the blocks hold the important kernels.

Every input channel and every filter belongs to exactly one group. How many groups a layer gets is given (`--groups`),
follows from the most channels a group may have (`max_group_channels`), or is searched for within a budget (`--budget`);
with an alignment (`--align`) the channels a group, in and out, are multiples of a block.
With shared partitions, the layers of one coupled set that have as many groups divide their filters alike: what divides
them best is decided by the sum of their importance, not by the first of them. How many of the Gathers remain that stand
where the groups of two layers in a row differ is a matter of `gather_share`, or of their price (see `mixing`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from edgeprune.devices.prices import DevicePrices
from edgeprune.errors import InputError
from edgeprune.graph import Graph, Layer
from edgeprune.methods import setting
from edgeprune.methods.base import (
    MethodInput,
    MethodResult,
    PruneRequest,
    Weights,
    check_skip_patterns,
    dense_reason,
    nothing_to_prune,
    require_finite,
)
from edgeprune.methods.gconv.counts import GroupCounts, as_asked, at_most_channels, powers_of_two
from edgeprune.methods.gconv.divider import Divider, Divisions
from edgeprune.methods.gconv.importance import kernel_importance
from edgeprune.methods.gconv.mixing import USUAL, mix
from edgeprune.methods.gconv.search import Heal, Terms, record, search
from edgeprune.methods.gconv.solver import Solver
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordTable
from edgeprune.plans.plan import LayerPlan, Plan

SUMMARY = "Divides filters and input channels so that dense groups hold the most important kernels; searches budgets."
GROUPS = 8
TAKES = ("--no-share-partitions", "--for-devices")
AMOUNT_SETTINGS = ("max_group_channels",)


@dataclass(frozen=True)
class Settings:
    """The settings of GConv."""

    importance: Literal["l2", "l1", "taylor"] = setting(
        "l2", "a kernel's importance: its L2 or L1 norm, or taylor (|gradient * weight|, needs --data)", paper="l2"
    )
    solver: Literal["alternating", "paper"] = setting(
        "alternating",
        "alternating: exact assignments of filters and channels in turn from annealed starts; paper: sorting rounds",
        paper="paper",
    )
    rounds: int = setting(10, "sorting rounds a group of solver=paper; 0 does not sort", paper="10")
    effort: int = setting(1, "of solver=alternating: 4 tries four times as many starts", paper="none")
    max_group_channels: int = setting(
        0,
        "each layer gets the fewest groups with at most so many channels each, in and out; 0: --groups decides",
        paper="none; a comparison in its figure 6",
    )
    max_groups: int = setting(
        16, "--budget: the most groups of a layer; powers of two that divide its channels are tried", paper="not said"
    )
    search_cost: Literal["step", "per-mac"] = setting(
        "per-mac",
        "--budget: what makes a step dear: the importance it loses (step), or that for each multiply-add saved",
        paper="step",
    )
    finetune_every: int = setting(
        0, "--budget: fine-tune one epoch after every so many steps (needs --finetune-epochs); 0: never", paper="0 or 1"
    )
    gather_share: float | Literal["auto"] = setting(
        "auto",
        "the most time that Gathers may take, as a share of the grouped network's; 1: every layer divides its inputs "
        "freely; 0: partitions are equal wherever they can be; auto: with --align auto those that the device profile's "
        "price makes worth it, else 1",
        paper="none; its layers divide freely",
    )


def needs_gradients(settings: Settings) -> bool:
    """Whether the importance looks at the loss."""
    return settings.importance == "taylor"


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """The plan, `method.json` with what each layer keeps and the search's path, and each layer's recovery ratio (8).

    A layer stays dense where `dense_reason` says so, or where its channels cannot be divided; its note gives the
    reason. InputError if that holds for all layers, if settings make no sense or lack what they need, if weights are
    not finite, or if the budget cannot be met. The result depends on the input alone, not on the number of cores.
    """
    request, graph = given.request, given.graph
    request.check()
    check_skip_patterns(graph, request)
    _check_settings(settings, given)
    reasons = {layer.name: dense_reason(layer, dataclasses.replace(request, groups=1)) for layer in graph.layers}
    found_counts = {
        layer.name: _group_counts(layer, request, settings) for layer in graph.layers if not reasons[layer.name]
    }
    reasons |= {name: found.reason for name, found in found_counts.items()}
    asked = {name: found.asked for name, found in found_counts.items() if found.asked}
    candidates = {name: found.counts for name, found in found_counts.items() if found.counts}
    if not candidates:
        raise _nothing_to_group(graph, reasons, request.align)
    started = time.perf_counter()
    # One BLAS thread: sums then add up in one order on every machine.
    with threadpool_limits(limits=1):
        divider = _divider(given, settings, list(candidates), given.weights, given.gradients)
        records = MethodRecord()
        if request.budget.is_given:
            terms = Terms(graph, request.budget, candidates, settings.search_cost, settings.finetune_every)
            found = search(divider, terms, _heal(given, settings, reasons, list(candidates)))
            divisions = found.divider.divide(found.configuration, found.held)
            records = record(found.path, graph)
            reasons |= {name: "the search leaves it dense" for name in candidates if name not in divisions}
        else:
            divisions = divider.divide({name: counts[0] for name, counts in candidates.items()})
        notes: tuple[str, ...] = ()
        share, price = _gathers(settings, request)
        if share is None or share < 1.0:
            mixed = mix(graph, divider, divisions, share, price)
            divisions, notes = mixed.divisions, (mixed.note,)
            records = MethodRecord((*records.tables, mixed.table), records.curves)
        recovery = divider.recovery(divisions)
    seconds = (time.perf_counter() - started) / len(divisions)  # layers are solved together
    records = MethodRecord((*records.tables, _recovery_table(graph, divisions, recovery)), records.curves)
    return MethodResult(
        _plan(given, settings, divisions, reasons, asked),
        {FILE_NAME: records.to_json()},
        dict.fromkeys(divisions, seconds),
        notes,
        recovery,
    )


def _group_counts(layer: Layer, request: PruneRequest, settings: Settings) -> GroupCounts:
    """The numbers of groups that the layer may have, or none and why."""
    if request.budget.is_given:
        return powers_of_two(layer, settings.max_groups, request.align)
    if settings.max_group_channels:
        return at_most_channels(layer, settings.max_group_channels, request.align)
    return as_asked(layer, request.groups, request.align)


def _divider(
    given: MethodInput, settings: Settings, layers: list[str], weights: Weights, gradients: Weights
) -> Divider:
    require_finite(layers, weights)
    require_finite(layers, gradients, "gradients")
    importance = {name: kernel_importance(settings.importance, weights[name], gradients.get(name)) for name in layers}
    writes = {name: given.graph.layer(name).writes for name in layers}
    streams = {name: writes[name] if given.request.share_partitions else name for name in layers}
    solver = Solver(settings.solver, given.request.seed, settings.effort, settings.rounds)
    return Divider(importance, streams, solver)


def _heal(given: MethodInput, settings: Settings, reasons: Mapping[str, str], layers: list[str]) -> Heal:
    """Prune and fine-tune as decided so far, and look at the importance of what then is there."""

    def heal(divisions: Divisions) -> Divider:
        assert given.finetune is not None  # _check_settings
        healed = given.finetune(_plan(given, settings, divisions, reasons, {}))
        return _divider(given, settings, layers, healed.weights, healed.gradients)

    return heal


def _gathers(settings: Settings, request: PruneRequest) -> tuple[float | None, DevicePrices]:
    """The share of the time that Gathers may take, or None where only what each gains is weighed; and their price."""
    if not request.allows_gathers:
        return 0.0, USUAL
    if settings.gather_share != "auto":
        return settings.gather_share, USUAL
    if request.mixing_price is not None:
        return None, request.mixing_price
    if request.prices is None or not request.share_partitions or settings.finetune_every:
        return 1.0, USUAL
    return None, request.prices


def _plan(
    given: MethodInput, settings: Settings, divisions: Divisions, reasons: Mapping[str, str], asked: Mapping[str, int]
) -> Plan:
    """`reasons`: why layers without a division stay dense; `asked`: groups asked for where alignment took others."""
    entries = []
    for layer in given.graph.layers:
        if layer.name in divisions:
            filters, inputs = divisions[layer.name].clusters()
            groups = asked.get(layer.name, 0)
            note = f"aligned to blocks of {given.request.align}: {groups} groups were asked for" if groups else ""
            entries.append(LayerPlan(layer.name, filters, inputs, note, asked_groups=groups))
        else:
            entries.append(LayerPlan(layer.name, note=reasons[layer.name]))
    return Plan("gconv", _used_settings(settings, given.request), given.request.seed, tuple(entries))


def _recovery_table(graph: Graph, divisions: Divisions, recovery: Mapping[str, float]) -> RecordTable:
    rows = []
    for name, division in divisions.items():
        layer = graph.layer(name)
        size = f"{layer.in_channels} to {layer.out_channels}"
        rows.append((name, size, division.groups, recovery[name], 1 / division.groups))
    columns = ("layer", "channels", "groups", "importance kept", "kernels kept")
    text = "The share of each grouped layer's importance that its kept kernels hold, beside their share in number."
    return RecordTable("What each grouped layer keeps", columns, tuple(rows), text)


def _nothing_to_group(graph: Graph, reasons: Mapping[str, str], align: int) -> InputError:
    remedy = (
        "choose a number of groups that divides the channels, such as --groups 2; see also --skip, --include-first and "
        "--include-shortcuts"
    )
    if align > 1:
        remedy = f"--align {align} is a coarse block for this network: try a smaller one, or --align none; or {remedy}"
    return nothing_to_prune(graph, reasons, "be grouped", remedy)


def _check_settings(settings: Settings, given: MethodInput) -> None:
    """InputError for a value that means nothing or lacks what it needs, however the settings were made."""
    budget = given.request.budget.is_given
    share = 1.0 if settings.gather_share == "auto" else settings.gather_share
    checks = (
        ("importance", settings.importance in ("l2", "l1", "taylor"), "l2, l1 or taylor"),
        ("solver", settings.solver in ("alternating", "paper"), "alternating or paper"),
        ("search_cost", settings.search_cost in ("step", "per-mac"), "step or per-mac"),
        ("rounds", settings.rounds >= 0, "0 or a positive integer"),
        ("effort", settings.effort >= 1, "an integer of 1 or more"),
        ("max_group_channels", settings.max_group_channels >= 0, "0 or a positive integer"),
        ("max_groups", settings.max_groups >= 2, "an integer of 2 or more"),
        ("finetune_every", settings.finetune_every >= 0, "0 or a positive integer"),
        ("gather_share", 0.0 <= share <= 1.0, "a share from 0 to 1, or auto"),
    )
    for name, good, expected in checks:
        if not good:
            raise InputError(f"setting {name} is {getattr(settings, name)!r}", expected=expected)
    if needs_gradients(settings) and not given.gradients:
        raise InputError("importance=taylor needs images", remedy="pass --data, such as --data imagefolder:DIR")
    if budget and settings.max_group_channels:
        raise InputError("both a budget and max_group_channels decide the groups", remedy="leave one of them out")
    if settings.finetune_every and not budget:
        raise InputError("finetune_every is set, but there is no search", remedy="pass --budget, such as macs=0.5")
    if share < 1.0 and not given.request.share_partitions:
        raise InputError("gather_share below 1 needs shared partitions", remedy="leave out --no-share-partitions")
    if share < 1.0 and settings.finetune_every:
        raise InputError(
            "finetune_every heals the network under divisions that gather_share would change afterwards",
            remedy="leave one of them out",
        )
    if settings.finetune_every and given.finetune is None:
        raise InputError(
            "finetune_every needs images to fine-tune on", remedy="pass --data and --finetune-epochs, or leave it out"
        )


def _used_settings(settings: Settings, request: PruneRequest) -> dict[str, Any]:
    """Every setting with the value that was used, JSON-able."""
    values: dict[str, Any] = {
        name: getattr(request, name) for name in ("share_partitions", "include_first", "include_shortcuts")
    }
    if not request.budget.is_given and not settings.max_group_channels:
        values["groups"] = request.groups
    values |= {"skip": list(request.skip), "budget": dataclasses.asdict(request.budget), "align": request.align}
    values |= dataclasses.asdict(settings)
    share, price = _gathers(settings, request)
    if share is None:
        return values | {"prices": price.record()}
    return values | {"gather_share": share}
