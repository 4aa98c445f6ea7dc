"""Masked checkpoints become small networks that compute the same."""

from __future__ import annotations

from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods import load_method
from edgeprune.methods.base import MethodResult, PruneRequest
from edgeprune.methods.masked_checkpoint import Settings, prune
from edgeprune.plans.check import check_plan
from edgeprune.plans.method_record import load_method_record
from edgeprune.pruning.method_inputs import method_input
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace
from edgeprune.zoo import build

NETWORKS = [networks.Residual, networks.Concatenating, networks.Mobile, networks.Shuffled, networks.Bare]


def traced(model: nn.Module, size: int = 16) -> Graph:
    return trace(model.eval(), torch.zeros(1, 3, size, size)).graph


def converted(model: nn.Module, graph: Graph, request: PruneRequest | None = None, **chosen: object) -> MethodResult:
    given = method_input(load_method("masked"), model, graph, request or PruneRequest())
    result = prune(given, Settings(**chosen))  # type: ignore[arg-type]
    assert check_plan(result.plan, graph) == []
    return result


@torch.no_grad()
def zero(layer: nn.Module, filters: list[int], norm: nn.Module | None = None) -> None:
    layer.weight[filters] = 0
    if layer.bias is not None:
        layer.bias[filters] = 0
    if norm is not None:
        norm.weight[filters] = 0
        norm.bias[filters] = 0


def mask_half(model: nn.Module, graph: Graph, *, norms: bool, seed: int) -> None:
    """Half of the filters of every convolution become zero, each layer's own, as soft pruning elsewhere leaves them."""
    rng = np.random.default_rng(seed)
    for layer in graph.layers:
        if layer.kind == "conv" and not layer.is_depthwise:
            gone = rng.choice(layer.out_channels, layer.out_channels // 2, replace=False).tolist()
            norm = model.get_submodule(layer.norm) if layer.norm and norms else None
            zero(model.get_submodule(layer.name), gone, norm)


def assert_same_output(small: nn.Module, model: nn.Module, size: int = 16) -> None:
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(small.double()(images.double()), model.double()(images.double()), rtol=1e-6, atol=1e-6)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("factory", NETWORKS)
def test_the_small_network_computes_what_the_masked_one_does(
    factory: Callable[[], nn.Module], norms: bool, seed: int
) -> None:
    model = networks.settled(factory(), seed)
    graph = traced(model)
    mask_half(model, graph, norms=norms, seed=seed)
    small = rewrite(model, converted(model, graph).plan, graph)
    assert parameters(small) < parameters(model)
    assert_same_output(small, model)


def test_constants_of_zero_go_and_of_the_others_one_stays_for_all() -> None:
    model = networks.settled(networks.Residual())
    graph = traced(model)
    gone = [1, 4, 5, 9, 12]
    zero(model.a, gone)
    with torch.no_grad():  # what BatchNorm makes of a zero filter: -1, which ReLU makes 0, or +1
        model.a_bn.running_mean[gone] = 0
        model.a_bn.bias[gone] = torch.tensor([-1.0, 1.0, -1.0, 1.0, 2.0])
    result = converted(model, graph)
    (entry,) = result.plan.sets
    assert entry.kept == (0, 2, 3, 4, 6, 7, 8, 10, 11, 13, 14, 15)
    assert entry.constant == (4, 9, 12)
    assert_same_output(rewrite(model, result.plan, graph), model)
    assert result.notes == (
        "4 of 5 zero filters are cut out, 2 of them as equal constants.",
        "1 zero filters stay (1: stands for other constants).",
    )


def test_a_branch_leaves_out_the_filters_that_add_nothing_and_keeps_those_that_add_a_constant() -> None:
    model = networks.settled(networks.Residual())
    graph = traced(model)
    zero(model.b, [0, 3], model.b_bn)
    zero(model.b, [7, 8])  # BatchNorm makes constants of these
    result = converted(model, graph)
    notes = {entry.name: entry for entry in result.plan.layers}
    assert set(range(16)) - set(notes["b"].kept_filters) == {0, 3}
    assert notes["b"].note == "2 of 4 zero filters cut; 2 stay: adds a constant to a residual stream"
    assert notes["a"].note == "no zero filter"
    assert_same_output(rewrite(model, result.plan, graph), model)

    cut = converted(model, graph, lossy=True)
    assert set(range(16)) - set(next(e for e in cut.plan.layers if e.name == "b").kept_filters) == {0, 3, 7, 8}


def test_channels_that_the_whole_stream_has_masked_thin_the_stream() -> None:
    model = build("resnet20").model
    networks.settled(model)
    graph = traced(model, 32)
    gone = [*range(12), *range(20, 24), *range(52, 64)]
    for layer in graph.layers:
        if layer.name.startswith("layer3") and layer.name.endswith("conv2"):
            zero(model.get_submodule(layer.name), gone, model.get_submodule(layer.norm))
    result = converted(model, graph)
    # Channels 16..47 still get those of the stream before, through the zero-padded shortcut.
    (entry,) = result.plan.sets
    assert set(range(64)) - set(entry.kept) == {c for c in gone if not 16 <= c < 48}
    assert not any(layer.kept_filters for layer in result.plan.layers)
    assert_same_output(rewrite(model, result.plan, graph), model, 32)


def test_of_a_stream_the_cheaper_of_channels_and_branches_is_cut() -> None:
    model = networks.settled(networks.Residual())
    graph = traced(model)
    zero(model.e, [0], model.e_bn)
    zero(model.project, [0, *range(4, 32)], model.project_bn)  # one channel of the stream, or 29 filters of a branch
    result = converted(model, graph)
    assert not result.plan.sets
    kept = {entry.name: len(entry.kept_filters) for entry in result.plan.layers if entry.kept_filters}
    assert kept == {"e": 31, "project": 3}
    assert_same_output(rewrite(model, result.plan, graph), model)


def test_a_layer_of_nothing_but_zeros_keeps_one_filter() -> None:
    model = networks.settled(networks.Residual())
    graph = traced(model)
    zero(model.a, list(range(16)), model.a_bn)
    zero(model.b, list(range(16)), model.b_bn)
    result = converted(model, graph)
    assert [entry.kept for entry in result.plan.sets] == [(0,)]
    notes = {entry.name: entry for entry in result.plan.layers}
    assert notes["b"].kept_filters == (0,)
    assert notes["b"].note == "15 of 16 zero filters cut; 1 stay: a layer keeps one filter at least"
    assert_same_output(rewrite(model, result.plan, graph), model)


def test_what_is_skipped_stays() -> None:
    model = networks.settled(networks.Residual())
    graph = traced(model)
    zero(model.a, [1], model.a_bn)
    zero(model.c, [2], model.c_bn)
    result = converted(model, graph, PruneRequest(skip=("a",)))
    assert [entry.name for entry in result.plan.sets] == ["c"]
    assert next(e for e in result.plan.layers if e.name == "a").note.endswith("1 stay: skipped by request")


def test_filters_within_the_tolerance_count_as_zero(tmp_path) -> None:
    model = networks.settled(networks.Residual())
    graph = traced(model)
    with torch.no_grad():
        model.c.weight[[3, 8]] = 1e-7
        model.c_bn.weight[[3, 8]] = 0
        model.c_bn.bias[[3, 8]] = 0
    with pytest.raises(InputError, match=r"no convolution has a filter .* weights up to 1e-07 \(see --set tolerance"):
        converted(model, graph)
    result = converted(model, graph, tolerance=1e-6)
    assert set(range(32)) - set(result.plan.sets[0].kept) == {3, 8}
    (tmp_path / "method.json").write_bytes(result.records["method.json"])
    rows = load_method_record(tmp_path / "method.json").tables[0].rows
    assert ("c", 32, 2, 2, "") in rows


def test_zero_filters_that_all_add_constants_are_an_error_that_names_the_way_out() -> None:
    model = networks.settled(networks.Residual())
    graph = traced(model)
    zero(model.b, [7, 8])
    with pytest.raises(InputError, match="none of its 2 zero filters .*2: adds a constant .*--set lossy=true"):
        converted(model, graph)


def test_a_negative_tolerance_is_refused() -> None:
    model = networks.settled(networks.Residual())
    with pytest.raises(InputError, match="setting tolerance is -1"):
        converted(model, traced(model), tolerance=-1.0)


class Padded(nn.Module):
    """A zero-padded skip around `a`, which reads the stem behind a ReLU."""

    def __init__(self, *, padded_behind: bool) -> None:
        super().__init__()
        self.padded_behind = padded_behind  # whether the skip, too, starts behind the ReLU
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        seen = F.relu(x)
        skip = seen if self.padded_behind else x
        return self.head((F.pad(skip, (0, 0, 0, 0, 1, 1)) + self.a(seen)).mean((2, 3)))


class PaddedConcatenation(nn.Module):
    """The layers read a concatenation behind a ReLU; its BatchNorm, behind it, is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.a(x), self.b(x)], 1))
        return self.head((F.pad(self.bn(x), (0, 0, 0, 0, 1, 1)) + self.c(x)).mean((2, 3)))


def test_a_channel_that_is_zero_for_the_layers_only_stays_if_a_padding_carries_another_constant() -> None:
    model = networks.settled(Padded(padded_behind=False))
    graph = traced(model)
    zero(model.stem, [2, 4])
    with torch.no_grad():
        model.stem.bias[2] = -1.5  # zero for `a`, behind the ReLU; not where it is padded
    result = converted(model, graph)
    assert [(entry.name, entry.kept) for entry in result.plan.sets] == [("stem", (0, 1, 2, 3, 5))]
    assert_same_output(rewrite(model, result.plan, graph), model)


def test_what_a_padding_carries_counts_behind_a_batch_norm_and_in_a_concatenation_too() -> None:
    model = networks.settled(PaddedConcatenation())
    graph = traced(model)
    zero(model.a, [1, 3])
    zero(model.b, [0])
    with torch.no_grad():  # zero for `c`; the BatchNorm makes a constant of channel 3 of `a`
        model.bn.running_mean[[1, 4]] = model.bn.bias[[1, 4]] = 0
        model.bn.bias[3] = 2.0
    result = converted(model, graph)
    assert {entry.name: entry.kept for entry in result.plan.sets} == {"a": (0, 2, 3), "b": (1,)}
    assert_same_output(rewrite(model, result.plan, graph), model)


@pytest.mark.parametrize("lossy", [False, True])
def test_a_channel_that_a_padding_fills_lives_as_long_as_its_source(lossy: bool) -> None:
    class Reading(Padded):
        def __init__(self) -> None:
            super().__init__(padded_behind=True)
            self.c = nn.Conv2d(8, 4, 3)
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.head(self.c(F.relu(F.pad(x, (0, 0, 0, 0, 1, 1)) + self.a(x))).mean((2, 3)))

    model = networks.settled(Reading())
    graph = traced(model)
    zero(model.a, [0, 3])  # the padding puts zeros into channel 0, and channel 2 of the stem into channel 3
    with torch.no_grad():
        model.stem.weight[2] = 0.2
        model.stem.bias[2] = -6.0  # fires on bright images only
    result = converted(model, graph, lossy=lossy)
    small = rewrite(model, result.plan, graph).double()
    bright = torch.full((1, 3, 16, 16), 2.0, dtype=torch.float64)
    torch.testing.assert_close(small(bright), model.double()(bright), rtol=1e-6, atol=1e-6)
