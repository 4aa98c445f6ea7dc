"""GConv on networks: sound plans, group configurations, budgets, and the whole way to a verified ONNX file."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Concatenating, Residual, settled
from torch import nn

from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main
from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.graph import CoupledSet, Graph, Layer
from edgeprune.methods.base import Healed, MethodInput, MethodResult, PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.gconv.counts import as_asked, at_most_channels
from edgeprune.methods.gconv.method import Settings, prune
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs, planned_params
from edgeprune.plans.method_record import FILE_NAME, MethodRecord
from edgeprune.plans.plan import Plan
from edgeprune.pruning.healing import loss_gradients
from edgeprune.pruning.network import layer_weights
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace


def chain(widths: list[int], positions: list[int]) -> MethodInput:
    """Dense 3x3 layers one after another, with random weights; the first stays dense."""
    layers = [
        Layer(f"l{n}", "conv", a, b, (3, 3), 1, positions[n], f"s{n}", f"s{n + 1}", is_first=n == 0)
        for n, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    names = [layer.name for layer in layers]
    sets = [
        CoupledSet(f"s{n}", width, tuple(names[n - 1 : n]), tuple(names[n : n + 1])) for n, width in enumerate(widths)
    ]
    rng = np.random.default_rng(widths)
    weights = {
        layer.name: (rng.standard_normal((layer.out_channels, layer.in_channels, 3, 3)) / layer.in_channels).astype(
            np.float32
        )
        for layer in layers
    }
    return MethodInput(Graph(tuple(layers), tuple(sets), (widths[0], 8, 8)), weights, PruneRequest())


def asked(given: MethodInput, **request: object) -> MethodInput:
    return MethodInput(given.graph, given.weights, PruneRequest(**request))  # type: ignore[arg-type]


def of_model(model: nn.Module, **request: object) -> MethodInput:
    graph = trace(model, torch.randn(1, 3, 16, 16)).graph
    return MethodInput(graph, layer_weights(model), PruneRequest(**request))  # type: ignore[arg-type]


def record_of(result: MethodResult) -> MethodRecord:
    return msgspec.json.decode(result.records[FILE_NAME], type=MethodRecord)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([8, 16, 24, 32]), min_size=3, max_size=5), st.sampled_from([2, 4, 8]), st.booleans(),
    st.sampled_from(["alternating", "paper"]), st.sampled_from(["l2", "l1"]),
)  # fmt: skip
def test_plans_are_sound_and_every_channel_is_in_one_group(
    widths: list[int], groups: int, share: bool, solver: str, importance: str
) -> None:
    given = asked(chain([3, *widths], [64] * 9), groups=groups, share_partitions=share, include_first=True)
    how = Settings(solver=solver, importance=importance)  # type: ignore[arg-type]
    result = prune(given, how)
    assert check_plan(result.plan, given.graph) == []
    for name, entry in result.plan.grouped().items():
        layer = given.graph.layer(name)
        assert sorted(c for group in entry.inputs for c in group) == list(range(layer.in_channels))
        assert entry.groups == groups
        assert list(entry.filters) == sorted(entry.filters)
        assert 1 / groups <= result.recovery[name] < 1
    assert result.plan == prune(given, how).plan
    assert "input channels" in result.plan.layers[0].note


def test_recovery_is_the_share_of_the_norms_that_the_blocks_hold() -> None:
    given = asked(chain([8, 16, 16], [64, 64]), groups=4)
    result = prune(given, Settings())
    norms = np.sqrt((given.weights["l1"].astype(np.float64) ** 2).sum((2, 3)))
    entry = result.plan.grouped()["l1"]
    held = sum(norms[np.ix_(f, c)].sum() for f, c in zip(entry.filters, entry.inputs, strict=True))
    assert result.recovery["l1"] == pytest.approx(held / norms.sum())
    (row,) = [row for table in record_of(result).tables for row in table.rows]
    assert row == ("l1", "16 to 16", 4, pytest.approx(held / norms.sum()), 0.25)


def test_layers_of_a_residual_stream_share_their_filters() -> None:
    model = settled(Residual())
    shared = prune(of_model(model, groups=4, include_shortcuts=True), Settings()).plan.grouped()
    apart = prune(of_model(model, groups=4, include_shortcuts=True, share_partitions=False), Settings()).plan.grouped()
    assert shared["e"].filters == shared["project"].filters
    assert shared["e"].inputs != shared["project"].inputs
    assert apart["e"].filters != apart["project"].filters


def test_at_most_so_many_channels_a_group() -> None:
    given = chain([3, 12, 24, 24, 8, 32], [64] * 5)
    plan = prune(given, Settings(max_group_channels=8)).plan
    assert {e.name: (e.groups, e.note) for e in plan.layers if not given.graph.layer(e.name).is_first} == {
        "l1": (3, ""),  # 12 -> 24: the fewest groups that divide both and leave at most 8 each
        "l2": (3, ""),
        "l3": (4, ""),  # 24 -> 8
        "l4": (4, ""),  # 8 -> 32
    }
    wide = prune(given, Settings(max_group_channels=24)).plan
    assert {e.name: e.note for e in wide.layers}["l3"] == "it has no more than 24 channels already"
    assert list(wide.grouped()) == ["l4"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 12).map(lambda n: 8 * n), min_size=3, max_size=5), st.integers(2, 9),
    st.sampled_from([1, 4, 8, 16]), st.sampled_from([0, 16, 24]),
)  # fmt: skip
def test_aligned_groups_are_whole_blocks_and_as_many_as_may_be(
    widths: list[int], groups: int, block: int, most: int
) -> None:
    given = asked(chain([3, *widths], [64] * 9), groups=groups, align=block)
    how = Settings(solver="paper", rounds=1, max_group_channels=most)
    layers = given.graph.layers[1:]
    if not any((at_most_channels(a, most, block) if most else as_asked(a, groups, block)).counts for a in layers):
        with pytest.raises(InputError, match="can be grouped"):
            prune(given, how)
        return
    plan = prune(given, how).plan
    assert check_plan(plan, given.graph) == []
    assert plan.settings["align"] == block
    for entry in plan.layers[1:]:
        layer = given.graph.layer(entry.name)
        fitting = [
            n
            for n in range(2, 97)
            if not layer.in_channels % (n * block)
            and not layer.out_channels % (n * block)
            and (max(layer.in_channels, layer.out_channels) <= most * n if most else n <= groups)
        ]
        if most:
            is_small = max(layer.in_channels, layer.out_channels) <= most
            assert entry.groups == (1 if is_small or not fitting else fitting[0])
        elif block == 1:  # as many as asked, or none: nothing is lowered unasked
            assert entry.groups == (groups if groups in fitting else 1)
        else:
            assert entry.groups == (fitting[-1] if fitting else 1)
            assert entry.asked_groups == (0 if entry.groups in (1, groups) else groups)
        assert (entry.note == "") == (not entry.is_dense and not entry.asked_groups)


def test_alignment_is_told_in_words() -> None:
    given = asked(chain([3, 16, 48, 96, 128, 256], [64] * 5), groups=8, align=16)
    plan = prune(given, Settings()).plan
    assert {entry.name: (entry.groups, entry.asked_groups, entry.note) for entry in plan.layers[1:]} == {
        "l1": (1, 0, "its 16 input channels and 48 filters cannot be divided into 2 to 8 groups of whole blocks of 16 "
               "channels"),
        "l2": (3, 8, "aligned to blocks of 16: 8 groups were asked for"),
        "l3": (2, 8, "aligned to blocks of 16: 8 groups were asked for"),
        "l4": (8, 0, ""),
    }  # fmt: skip
    with pytest.raises(InputError, match="--align 64 is a coarse block"):
        prune(asked(chain([3, 16, 48], [64] * 2), groups=8, align=64), Settings())


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 0.9), st.sampled_from([8, 16]))
def test_an_aligned_search_holds_its_budget(macs: float, block: int) -> None:
    given = asked(chain([3, 32, 64, 64, 128, 128], [64] * 5), budget=Budget(macs), align=block)
    plan = prune(given, Settings()).plan
    assert sum(planned_macs(plan, given.graph).values()) <= macs * given.graph.macs
    assert plan.grouped()
    for entry in plan.grouped().values():
        assert entry.kept % block == len(entry.filters[0]) % block == 0
        assert entry.asked_groups == 0


@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.15, 0.9), st.one_of(st.none(), st.floats(0.15, 0.9)), st.sampled_from(["step", "per-mac"]),
    st.booleans(),
)  # fmt: skip
def test_the_search_holds_its_budget_and_its_path_only_falls(
    macs: float, params: float | None, cost: str, share: bool
) -> None:
    given = chain([3, 16, 32, 32, 64, 64], [256, 256, 64, 64, 16])
    given = asked(given, budget=Budget(macs, params), share_partitions=share)
    result = prune(given, Settings(search_cost=cost))  # type: ignore[arg-type]
    graph = given.graph
    left = sum(planned_macs(result.plan, graph).values()) / graph.macs
    assert check_plan(result.plan, graph) == []
    assert left <= macs
    assert params is None or planned_params(result.plan, graph) <= params * graph.params
    (curve,), path = record_of(result).curves, record_of(result).tables[0]
    assert path.title == curve.title
    assert all(a > b for a, b in zip((1.0, *curve.x), curve.x, strict=False))
    assert all(a > b for a, b in zip((1.0, *curve.y), curve.y, strict=False))
    assert curve.x[-1] == pytest.approx(left)
    counts = dict.fromkeys((layer.name for layer in graph.layers), 1)
    for _, layer, groups, *_ in path.rows:
        assert groups == 2 * counts[str(layer)]
        counts[str(layer)] = int(groups)
    assert counts == {entry.name: entry.groups for entry in result.plan.layers}
    one_less = (1.0, *curve.x)[len(curve.x) - 1]
    assert one_less > macs or params is not None  # it stops as soon as the budget holds


def test_the_search_takes_the_cheapest_step_first() -> None:
    given = chain([3, 16, 16, 16], [64, 256, 64])
    weights = dict(given.weights)
    weights["l2"] = weights["l1"] * 0.5  # loses half as much, saves a quarter of the multiply-adds
    given = MethodInput(given.graph, weights, PruneRequest(budget=Budget(0.9)))
    assert record_of(prune(given, Settings(search_cost="step"))).tables[0].rows[0][1] == "l2"
    assert record_of(prune(given, Settings(search_cost="per-mac"))).tables[0].rows[0][1] == "l1"


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    given = chain([3, 16, 32, 32], [64] * 3)
    with pytest.raises(
        InputError, match=r"--budget macs=0.05 cannot be met: .* (0\.\d+) of the multiply-adds"
    ) as error:
        prune(asked(given, budget=Budget(0.05)), Settings())
    nearest = float(str(error.value).partition("everywhere, ")[2].split()[0])
    prune(asked(given, budget=Budget(nearest)), Settings())


@pytest.mark.parametrize(
    ("request_", "how", "words"),
    [
        ({"groups": 5}, Settings(), "none of the network's 3 layers can be grouped"),
        ({"budget": Budget(0.5)}, Settings(max_group_channels=8), "both a budget and max_group_channels"),
        ({"budget": Budget(0.5)}, Settings(finetune_every=2), "pass --data and --finetune-epochs"),
        ({}, Settings(finetune_every=2), "pass --budget"),
        ({}, Settings(importance="taylor"), "pass --data"),
        ({}, Settings(rounds=-1), "setting rounds is -1"),
        ({}, Settings(effort=0), "setting effort is 0"),
        ({}, Settings(max_groups=1), "setting max_groups is 1"),
        ({"skip": ("nothing",)}, Settings(), "matches no layer"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_way_out(
    request_: dict[str, object], how: Settings, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        prune(asked(chain([3, 16, 16, 32], [64] * 3), **request_), how)


def test_weights_that_are_no_numbers_are_refused() -> None:
    given = chain([3, 16, 16], [64] * 2)
    given.weights["l1"][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="l1: the weights hold NaN"):
        prune(given, Settings())


def test_gradients_that_are_no_numbers_are_refused() -> None:
    given = chain([3, 16, 16], [64] * 2)
    gradients = {name: np.full_like(weight, np.nan) for name, weight in given.weights.items()}
    with pytest.raises(InputError, match="l1: the gradients hold NaN"):
        prune(dataclasses.replace(given, gradients=gradients), Settings(importance="taylor"))


def test_healing_goes_on_from_what_the_network_was_healed_to() -> None:
    base = asked(chain([3, 16, 16, 16, 16], [64] * 4), budget=Budget(0.3))
    plans: list[Plan] = []
    weights = dict(base.weights)

    def finetune(plan: Plan) -> Healed:
        plans.append(plan)
        for name, entry in plan.grouped().items():
            kept = np.zeros(weights[name].shape[:2], dtype=np.float32)
            for f, c in zip(entry.filters, entry.inputs, strict=True):
                kept[np.ix_(f, c)] = 1.5  # what is left grows
            weights[name] = weights[name] * kept[:, :, None, None]
        return Healed(dict(weights))

    given = MethodInput(base.graph, base.weights, base.request, finetune=finetune)
    result = prune(given, Settings(finetune_every=2))
    steps = record_of(result).tables[0].rows
    assert len(plans) == (len(steps) - 1) // 2
    assert all(check_plan(plan, base.graph) == [] for plan in plans)
    final = result.plan.grouped()
    for name, entry in plans[-1].grouped().items():
        if final[name].groups == entry.groups:
            assert final[name] == entry  # a layer that stepped no further keeps what was healed
    assert all(len(step) == 6 for step in steps)


def test_gradients_are_those_of_the_mean_loss() -> None:
    torch.manual_seed(0)
    model = settled(Concatenating())
    images, labels = torch.randn(70, 3, 8, 8), torch.randint(0, 5, (70,))
    data = Dataset("random", images, labels, (), (0.0,) * 3, (1.0,) * 3)
    found = loss_gradients(model, data)
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    for name, gradient in found.items():
        expected = model.get_parameter(f"{name}.weight").grad
        assert expected is not None
        np.testing.assert_allclose(gradient, expected.numpy(), atol=1e-6)


def test_a_bottleneck_with_grouped_3x3_layers_needs_no_gather() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.reduce = nn.ModuleList(nn.Conv2d(16, 8, 1, bias=False) for _ in range(2))
            self.mid = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
            self.expand = nn.ModuleList(nn.Conv2d(8, 16, 1, bias=False) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            for reduce, mid, expand, norm in zip(self.reduce, self.mid, self.expand, self.norms, strict=True):
                x = (x + expand(norm(mid(reduce(x).relu())).relu())).relu()
            return x.mean((2, 3))

    model = settled(Bottleneck())
    given = of_model(model, groups=2, skip=("reduce.*", "expand.*"))
    result = prune(given, Settings())
    assert list(result.plan.grouped()) == ["mid.0", "mid.1"]
    folded = fold(rewrite(model, result.plan, given.graph).eval(), torch.randn(2, 3, 16, 16))
    assert folded.gathers_before == 4
    assert folded.gathers_after == 0


@pytest.mark.parametrize("how", [("--groups", "4"), ("--budget", "macs=0.6,params=0.6")])
def test_from_random_weights_to_a_verified_file(how: tuple[str, str], tmp_path: Path) -> None:
    out, summary = tmp_path / "out", tmp_path / "summary.json"
    network = ("--arch", "resnet8-w32", "--random-init", "--input-size", "3,16,16")
    assert main(["export", *network, "--method", "gconv", *how, "-o", str(out), "--quiet"]) == 0
    bundle = open_bundle(out)
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.passed
    assert bundle.has(FILE_NAME)
    assert main(["prune", *network, "--method", "gconv", *how, "-o", str(tmp_path / "p"), "--json", str(summary)]) == 0
    layers = json.loads(summary.read_text())["layers"]
    assert all(("recovery_ratio" in layer) == (layer["groups"] > 1) for layer in layers)
    assert any("recovery_ratio" in layer for layer in layers)
    assert main(["report", str(out), "--format", "md,json"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert [table["title"] for table in report["method"]["tables"]][-1] == "What each grouped layer keeps"
    assert "## How gconv decided" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--budget", "latency-ms=8@raspberry-pi-5"), "gconv looks for no --budget latency-ms"),
        (("--budget", "latency=0.6"), "gconv looks for no --budget latency"),
        (("--budget", "flops=0.5"), "unknown budget 'flops'"),
        (("--budget", "macs"), "no share"),
        (("--budget", "macs=2"), "out of range"),
        (("--budget", "macs=0.5,macs=0.6"), "twice"),
        (("--groups", "4", "--budget", "macs=0.5"), "leave one of them out"),
        (("--groups", "4", "--set", "max-group-channels=8"), "--groups and --set max_group_channels say how much"),
        (("--rate", "0.5"), "gconv takes no --rate"),
        (("--layer-rate", "layer1.*=0.5"), "gconv takes no --layer-rate"),
        (("--set", "importance=taylor"), "pass --data"),
    ],
)
def test_flags_that_cannot_be_meant(
    flags: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ("--arch", "resnet8-w32", "--random-init", "--input-size", "3,16,16")
    assert main(["prune", *network, "--method", "gconv", *flags, "-o", str(tmp_path / "out"), "--quiet"]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("verb", "extra"),
    [
        ("prune", ("--groups", "2", "--set", "importance=taylor")),
        ("export", ("--set", "finetune_every=3", "--budget", "macs=0.5")),
    ],
)
def test_images_choose_and_heal(verb: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    network = ("--arch", "resnet8-w32", "--random-init", "--input-size", "1,8,8")
    data = ("--data", "digits", "--finetune-epochs", "1")
    out = tmp_path / "out"
    assert main([verb, *network, "--method", "gconv", *extra, *data, "-o", str(out), "--quiet"]) == 0
    manifest = open_bundle(out).manifest
    assert manifest.accuracy is not None
    assert manifest.accuracy.pruned > 20  # random weights guess 10 %
    assert verb == "prune" or (manifest.parity is not None and manifest.parity.passed)
