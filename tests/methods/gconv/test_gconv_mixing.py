"""Where GConv's layers mix channels: partitions that are equal, the Gathers that this saves, and what it costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    Bare,
    Branching,
    Concatenating,
    Exciting,
    Inception,
    Mobile,
    Residual,
    Shuffled,
    random_plan,
    settled,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main
from edgeprune.devices.prices import DevicePrices
from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods.base import Healed, MethodInput, MethodResult, PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.gconv.divider import LayerDivision
from edgeprune.methods.gconv.method import Settings, prune
from edgeprune.methods.gconv.mixing import MACS_PER_ELEMENT, TITLE
from edgeprune.methods.gconv.partitions import Key, Links, annealed, ascended, improved, numbered
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs
from edgeprune.plans.gathers import planned_gathers
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordTable, load_method_record
from edgeprune.plans.plan import Plan
from edgeprune.pruning.network import layer_weights
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace
from edgeprune.zoo.cifar_resnet import FORMS, CifarResNet

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Bottlenecks(nn.Module):
    """Residual blocks of 1x1, 3x3 and 1x1 convolutions with a projection, as in ResNet-50."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        blocks = []
        for wide, narrow, out, stride in ((16, 8, 32, 1), (32, 8, 32, 1), (32, 16, 64, 2), (64, 16, 64, 1)):
            block = {
                "reduce": nn.Conv2d(wide, narrow, 1, bias=False), "norm1": nn.BatchNorm2d(narrow),
                "mid": nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False), "norm2": nn.BatchNorm2d(narrow),
                "expand": nn.Conv2d(narrow, out, 1, bias=False), "norm3": nn.BatchNorm2d(out),
            }  # fmt: skip
            if wide != out:
                block["project"] = nn.Conv2d(wide, out, 1, stride, bias=False)
            blocks.append(nn.ModuleDict(block))
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            y = F.relu(block["norm1"](block["reduce"](x)))  # type: ignore[index]
            y = F.relu(block["norm2"](block["mid"](y)))  # type: ignore[index]
            y = block["norm3"](block["expand"](y))  # type: ignore[index]
            x = F.relu(y + (block["project"](x) if "project" in block else x))  # type: ignore[index, operator]
        return self.head(x.mean((2, 3)))


class Looping(nn.Module):
    """Layers that write the stream that they read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b, self.c, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a(x))
        x = F.relu(x + self.b(x))
        return self.head(self.c(x).mean((2, 3)))


class Thirds(nn.Module):
    """Widths that want 3, 6 and 4 groups on the channels that one layer writes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.b, self.c, self.d = nn.Conv2d(12, 24, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(52, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        return self.head(torch.cat([self.b(x), self.c(x), self.d(x)], 1).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "basic blocks": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "bottlenecks": Bottlenecks,
    "projections": lambda: CifarResNet(14, FORMS["-b"], width=8),
    "loops": Looping,
    "zero-channel shortcuts": lambda: CifarResNet(14, FORMS[""], width=8),
    "every shortcut": Residual,
    "concatenated": Concatenating,
    "mobile": Mobile,
    "pinned": Shuffled,
    "branching": Branching,
}
PADDED = {"zero-channel shortcuts": 2, "every shortcut": 1}
"""Networks with shortcuts that pad by zero channels, which Gathers may have to put in their places."""


@functools.cache
def network(name: str) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = settled({**NETWORKS, "thirds": Thirds}[name]())
    return model, trace(model, X[:1]).graph


def pruned(name: str, share: float, **request: object) -> MethodResult:
    model, graph = network(name)
    asked = PruneRequest(**{"groups": 4, "include_shortcuts": True, **request})  # type: ignore[arg-type]
    return prune(MethodInput(graph, layer_weights(model), asked), Settings(gather_share=share))


def priced(name: str, price: DevicePrices) -> MethodResult:
    model, graph = network(name)
    asked = PruneRequest(groups=4, include_shortcuts=True, prices=price)
    return prune(MethodInput(graph, layer_weights(model), asked), Settings())


@functools.cache
def pruned_once(name: str, share: float, groups: int) -> MethodResult:
    return pruned(name, share, groups=groups)


def gathers(name: str, plan: Plan) -> int:
    """Those in the folded network, which must compute what the rewritten one does."""
    model, graph = network(name)
    rewritten = rewrite(model, plan, graph).eval()
    folded = fold(rewritten, X)
    with torch.no_grad():
        expected, got = rewritten(X), folded.module(X)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    return folded.gathers_after


def mixing(result: MethodResult) -> RecordTable:
    record = msgspec.json.decode(result.records[FILE_NAME], type=MethodRecord)
    return next(table for table in record.tables if table.title == TITLE)


@pytest.mark.parametrize("request_", [{"groups": 2}, {"groups": 4}, {"groups": 8, "align": 4}])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_that_are_all_tied_need_no_gather(name: str, request_: dict[str, object]) -> None:
    """Not where they read a concatenation or channels in a fixed order, nor where layers have fewer groups (align)."""
    free, tied = pruned(name, 1.0, **request_), pruned(name, 0.0, **request_)
    assert {n: e.groups for n, e in free.plan.grouped().items()} == {
        n: e.groups for n, e in tied.plan.grouped().items()
    }
    assert gathers(name, free.plan) > PADDED.get(name, 0)
    assert gathers(name, tied.plan) == PADDED.get(name, 0)
    assert {row[-1] for row in mixing(tied).rows} == {"no"}
    assert sum(tied.recovery.values()) <= sum(free.recovery.values())
    kernels = np.mean([1 / entry.groups for entry in tied.plan.grouped().values()])
    assert np.mean(list(tied.recovery.values())) > kernels * 0.98  # what unsorted groups keep, by and large


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_plans_are_sound_and_their_gathers_are_told(name: str, share: float) -> None:
    _, graph = network(name)
    result = pruned(name, share, groups=2 if name in ("concatenated", "branching") else 4)
    assert check_plan(result.plan, graph) == []
    for entry in result.plan.grouped().values():
        assert sorted(c for group in entry.inputs for c in group) == list(range(graph.layer(entry.name).in_channels))
    told = planned_gathers(result.plan.grouped(), graph)
    assert gathers(name, result.plan) == told.count
    assert {row[0]: row[3] for row in mixing(result).rows if row[-1] == "yes"} == told.inputs
    assert f"{told.count} of " in result.notes[0]
    assert result.plan.settings["gather_share"] == share


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["bottlenecks", "projections"]), st.floats(0.0, 1.0), st.sampled_from([2, 4]))
def test_between_none_and_all_the_gathers_stay_within_their_share(name: str, share: float, groups: int) -> None:
    _, graph = network(name)
    counts, kept = [], []
    for allowed in (0.0, share, 1.0):
        result = pruned_once(name, allowed, groups)
        told = planned_gathers(result.plan.grouped(), graph)
        cost, macs = told.elements * MACS_PER_ELEMENT, sum(planned_macs(result.plan, graph).values())
        assert cost <= allowed * (macs + cost)
        counts.append(told.count)
        kept.append(sum(result.recovery.values()))
    assert counts[0] <= counts[1] <= counts[2]
    assert kept[0] <= kept[1] * 1.005
    assert pruned(name, share, groups=groups).plan == pruned_once(name, share, groups).plan


def test_a_share_that_all_gathers_keep_leaves_every_layer_free() -> None:
    free, same = pruned("bottlenecks", 1.0), pruned("bottlenecks", 0.99)
    assert same.plan.layers == free.plan.layers
    assert not free.notes
    assert TITLE not in free.records[FILE_NAME].decode()
    assert TITLE in same.records[FILE_NAME].decode()


@pytest.mark.parametrize("name", ["basic blocks", "bottlenecks", "projections"])
def test_priced_gathers_stand_where_they_keep_more_for_the_time(name: str) -> None:
    free, tied = (pruned(name, share).plan.grouped() for share in (1.0, 0.0))
    gratis, dear = (priced(name, DevicePrices("", price)) for price in (1e-9, 1e9))
    assert gathers(name, gratis.plan) == gathers(name, pruned(name, 1.0).plan)
    assert free.keys() == gratis.plan.grouped().keys()
    assert dear.plan.grouped() == tied

    _, graph = network(name)
    price = DevicePrices("a device", 4.0, 1000.0, {1: 0.5, 8: 1.0})
    between = priced(name, price)
    kept = {row[0]: (row[1], row[2], row[4] == "yes") for row in mixing(between).rows}
    assert {gather for _, _, gather in kept.values()} == {True, False}
    for layer, (if_tied, if_free, has_gather) in kept.items():
        own, groups = graph.layer(layer), between.plan.grouped()[layer].groups
        time = price.convolution(own.macs // groups, own.out_channels // groups)
        with_gather = time + price.gather(own.in_channels * own.input_positions)
        if has_gather:
            assert float(if_free) / with_gather > float(if_tied) / time
    assert between.plan == priced(name, price).plan


def test_the_plan_tells_the_price_where_there_is_one() -> None:
    price = DevicePrices("a device", 4.0, 1000.0, {8: 0.5})
    result = priced("bottlenecks", price)
    told = {"device": "a device", "macs_per_element": 4.0, "macs_per_gather": 1000.0, "rates": {"8": 0.5}}
    assert result.plan.settings["gather_share"] == "auto"
    assert result.plan.settings["prices"] == told
    assert msgspec.json.decode(result.plan.to_json(), type=Plan) == result.plan
    assert "priced for a device" in result.notes[0]


@pytest.mark.parametrize(
    ("how", "request_"),
    [
        (Settings(gather_share=0.3), {}),
        (Settings(gather_share=1.0), {}),
        (Settings(), {"share_partitions": False}),
        (Settings(), {"prices": None}),
    ],
)
def test_a_share_or_freedom_that_is_asked_for_holds(how: Settings, request_: dict[str, object]) -> None:
    model, graph = network("bottlenecks")
    inputs = MethodInput(graph, layer_weights(model), PruneRequest(groups=4, prices=DevicePrices("dear", 1e9)))
    given = dataclasses.replace(inputs, request=dataclasses.replace(inputs.request, **request_))  # type: ignore[arg-type]
    unpriced = dataclasses.replace(given, request=dataclasses.replace(given.request, prices=None))
    share = 1.0 if how.gather_share == "auto" else how.gather_share
    found, expected = prune(given, how), prune(unpriced, Settings(gather_share=share))
    assert found.plan == expected.plan
    assert "prices" not in found.plan.settings


def test_devices_decide_whatever_the_alignment() -> None:
    model, graph = network("bottlenecks")
    left = {}
    for name, price in (("one", None), ("near", 1e-9), ("far", 1e9)):
        mixing = None if price is None else DevicePrices("2 devices", price)
        inputs = MethodInput(graph, layer_weights(model), PruneRequest(groups=4, mixing_price=mixing))
        left[name] = gathers("bottlenecks", prune(inputs, Settings()).plan)
    assert left["far"] == 0 < left["near"] <= left["one"]


def test_a_search_that_heals_is_not_priced() -> None:
    """It would be healed under other divisions."""
    model, graph = network("bottlenecks")
    asked = PruneRequest(budget=Budget(0.5), prices=DevicePrices("dear", 1e9))
    weights = layer_weights(model)
    inputs = MethodInput(graph, weights, asked, finetune=lambda plan: Healed(weights))
    assert prune(inputs, Settings(finetune_every=4)).plan.settings["gather_share"] == 1.0


def test_align_auto_prices_and_other_alignments_do_not(tmp_path: Path) -> None:
    network = ("--arch", "resnet8-w32", "--random-init", "--input-size", "3,16,16", "--groups", "2")

    def settings_of(name: str, *flags: str) -> dict[str, object]:
        out = tmp_path / name
        flags = (*network, "--method", "gconv", "--device-profile", "x86-avx512", *flags)
        assert main(["prune", *flags, "-o", str(out), "--quiet"]) == 0
        plan: dict[str, object] = msgspec.json.decode((out / "plan.json").read_bytes())["settings"]
        return plan

    asked = settings_of("auto", "--align", "auto")
    assert asked["gather_share"] == "auto"
    assert asked["prices"]["device"] == "x86-avx512"  # type: ignore[index]
    for name, *flags in (("none",), ("number", "--align", "16"), ("set", "--align", "auto", "--set", "gather_share=1")):
        plain = settings_of(name, *flags)
        assert plain["gather_share"] == 1.0
        assert "prices" not in plain


def test_partitions_are_shared_after_a_search() -> None:
    free, tied = (pruned("bottlenecks", share, budget=Budget(0.5)) for share in (1.0, 0.0))
    before, after = free.plan.grouped(), tied.plan.grouped()
    assert {name: entry.groups for name, entry in before.items()} == {n: entry.groups for n, entry in after.items()}
    assert gathers("bottlenecks", tied.plan) == 0 < gathers("bottlenecks", free.plan)


def test_numbers_of_groups_that_do_not_divide_each_other_cannot_agree() -> None:
    model, graph = network("thirds")
    asked = PruneRequest(include_shortcuts=True)
    result = prune(MethodInput(graph, layer_weights(model), asked), Settings(gather_share=0.0, max_group_channels=4))
    assert {name: entry.groups for name, entry in result.plan.grouped().items()} == {"a": 3, "b": 6, "c": 4, "d": 3}
    assert gathers("thirds", result.plan) == 1
    assert {row[0]: row[1] for row in mixing(result).rows if row[-1] == "yes"} == {"c": "6 groups elsewhere"}


def test_input_positions_are_those_before_the_stride() -> None:
    _, graph = network("bottlenecks")
    layer = graph.layer("blocks.2.mid")
    assert (layer.input_positions, layer.positions) == (32 * 32, 16 * 16)
    _, padded = network("zero-channel shortcuts")
    assert [padding.positions for padding in padded.paddings] == [16 * 16, 8 * 8]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([Bare, Branching, Concatenating, Exciting, Inception, Mobile, Residual, Shuffled]),
    st.sampled_from([2, 4]), st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_planned_gathers_are_those_of_the_folded_network(
    make: Callable[[], nn.Module], groups: int, overlap: bool, share: bool, seed: int
) -> None:
    model = settled(make())
    x = torch.randn(1, 3, 16, 16)
    graph = trace(model, x).graph
    plan = random_plan(graph, groups, overlap=overlap, share=share, seed=seed)
    folded = fold(rewrite(model, plan, graph).eval(), x)
    assert planned_gathers(plan.grouped(), graph).count == folded.gathers_after


def chained(widths: list[int], groups: int, seed: int, *, loop: bool) -> Links:
    """Layers one after another that are all tied; with `loop` one that writes what it reads, and a shortcut past all."""
    rng = np.random.default_rng(seed)
    keys: list[Key] = [("set", f"s{n}", groups) for n in range(len(widths))]
    ends = [(n, n + 1) for n in range(len(widths) - 1)] + ([(1, 1), (0, len(widths) - 1)] if loop else [])
    importance = {f"l{n}": rng.random((widths[b], widths[a])) for n, (a, b) in enumerate(ends)}
    writes = {f"l{n}": keys[b] for n, (_, b) in enumerate(ends)}
    reads = {f"l{n}": keys[a] for n, (a, _) in enumerate(ends)}
    return Links(importance, writes, reads, dict.fromkeys(writes, groups))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([4, 8, 12, 24]), min_size=2, max_size=4), st.sampled_from([2, 4]), st.integers(0, 99),
    st.booleans(),
)  # fmt: skip
def test_ascent_never_falls_and_ends_where_no_partition_gains(
    widths: list[int], groups: int, seed: int, loop: bool
) -> None:
    links = chained(widths, groups, seed, loop=loop)
    rng = np.random.default_rng(seed)
    sizes = {("set", f"s{n}", groups): width for n, width in enumerate(widths)}
    start = {key: rng.permutation(np.repeat(np.arange(groups), sizes[key] // groups)) for key in links.layers}
    now, before = dict(start), links.objective(start)
    for key in links.layers:
        better = improved(links, key, now)
        if better is not None:
            now[key] = better
            assert links.objective(now) > before
            before = links.objective(now)
    for begun in (start, now, annealed(links, seed)):
        end = ascended(links, begun)
        assert links.objective(end) >= links.objective(begun) * (1 - 1e-12)
        assert all(improved(links, key, end) is None for key in links.layers)
        assert all((np.bincount(end[key], minlength=groups) == sizes[key] // groups).all() for key in end)
    again = annealed(links, seed)
    assert all((again[key] == labels).all() for key, labels in annealed(links, seed).items())


def test_groups_that_lead_into_each_other_get_one_number() -> None:
    """Blocks that are hidden by other numbers in each layer are found without any ascent."""
    rng = np.random.default_rng(0)
    partitions = [rng.permutation(np.repeat(np.arange(4), 4)) for _ in range(4)]
    links = chained([16] * 4, 4, 0, loop=False)
    hidden = {
        f"l{n}": (partitions[n + 1][:, None] == partitions[n][None, :]).astype(float) for n in range(3)
    }  # all of the importance is in blocks
    links = dataclasses.replace(links, importance=hidden)
    model_of = {}
    for n in range(3):
        shuffled = rng.permutation(4)
        model_of[f"l{n}"] = LayerDivision(4, shuffled[partitions[n + 1]], shuffled[partitions[n]])
    start = numbered(links, model_of)
    assert links.objective(start) == sum(matrix.sum() for matrix in hidden.values())


@pytest.mark.parametrize(
    ("how", "request_", "words"),
    [
        (Settings(gather_share=-0.1), {}, "setting gather_share is -0.1"),
        (Settings(gather_share=float("nan")), {}, "setting gather_share is nan"),
        (Settings(gather_share=0.5), {"share_partitions": False}, "leave out --no-share-partitions"),
        (Settings(gather_share=0.5, finetune_every=1), {"budget": Budget(0.5)}, "finetune_every heals"),
    ],
)
def test_what_makes_no_sense_is_refused(how: Settings, request_: dict[str, object], words: str) -> None:
    model, graph = network("loops")
    asked = PruneRequest(**{"groups": 4, **request_})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        prune(MethodInput(graph, layer_weights(model), asked), how)


def test_a_bundle_of_tied_layers_is_verified_and_tells_where_channels_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    network = ("--arch", "resnet8-w32", "--random-init", "--input-size", "3,16,16", "--groups", "4")
    assert main(["export", *network, "--method", "gconv", "--set", "gather_share=0", "-o", str(out), "--quiet"]) == 0
    manifest = open_bundle(out).manifest
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert manifest.gathers is not None
    assert manifest.gathers.after_fold == 2  # the zero-channel shortcuts
    assert load_method_record(out / FILE_NAME).tables[0].title == TITLE
    assert main(["report", str(out), "--format", "md"]) == 0
    assert TITLE in (out / "report.md").read_text()
