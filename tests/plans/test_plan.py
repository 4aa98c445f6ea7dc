"""Plans: JSON round trip, hash, MACs, and the sentences of check_plan."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Residual, random_plan, settled
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods import amount_flags
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import off_block_note, planned_macs, planned_params
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan, load_plan
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace

X = torch.randn(1, 3, 16, 16)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(settled(Residual()), X).graph


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_json_round_trip_keeps_the_plan_and_its_hash(seed: int, overlap: bool, share: bool) -> None:
    plan = random_plan(trace(Residual(), X).graph, 4, overlap=overlap, share=share, seed=seed)
    again = msgspec.json.decode(plan.to_json(), type=Plan)
    assert again == plan
    assert again.sha256() == plan.sha256()
    assert again.to_json() == plan.to_json()
    readable = plan.to_readable_json()
    assert msgspec.json.decode(readable, type=Plan) == plan
    assert len(readable.splitlines()) == len(plan.layers) + 2


def test_planned_macs_and_parameters_are_those_of_the_rewritten_model(graph: Graph) -> None:
    model = settled(Residual())
    plan = random_plan(graph, 4, overlap=True, share=True)
    pruned = rewrite(model, plan, graph)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pruned(X)
    assert 2 * sum(planned_macs(plan, graph).values()) == counter.get_total_flops()
    assert planned_params(plan, graph) == sum(p.numel() for p in pruned.parameters())


def test_a_sound_plan_has_no_faults(graph: Graph) -> None:
    assert check_plan(random_plan(graph, 2, overlap=True, share=False), graph) == []


@pytest.mark.parametrize(
    ("filters", "inputs", "fault"),
    [
        (((0, 1), (2, 3)), ((0,), (1,)), "each of the 16 filters exactly once"),
        ((tuple(range(8)), tuple(range(8, 16))), ((0, 0), (1, 2)), "reads an input channel twice"),
        ((tuple(range(8)), tuple(range(8, 16))), ((0, 99), (1, 2)), "outside 0..15"),
        ((tuple(range(8)), tuple(range(8, 16))), ((0,), (1, 2)), "same number in each"),
        ((tuple(range(9)), tuple(range(9, 16))), ((0, 1), (1, 2)), r"groups have \[7, 9\] filters"),
        ((tuple(range(8)), tuple(range(8, 16))), ((), ()), "reads no input channel"),
        ((tuple(range(16)),), ((0,), (1,)), "1 groups of filters but 2 groups of input channels"),
    ],
)
def test_faults_are_sentences_that_name_the_layer(
    graph: Graph, filters: tuple[tuple[int, ...], ...], inputs: tuple[tuple[int, ...], ...], fault: str
) -> None:
    layers = [LayerPlan(layer.name) for layer in graph.layers if layer.name != "a"]
    faults = check_plan(Plan("m", {}, 0, (*layers, LayerPlan("a", filters, inputs))), graph)
    import re

    assert any(re.search(fault, sentence) for sentence in faults), faults
    assert all(sentence.startswith("a: ") and sentence.endswith(".") for sentence in faults)


def test_unknown_missing_and_ungroupable_layers_are_faults(graph: Graph) -> None:
    head = LayerPlan("head", ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)), ((0,), (1,)))
    faults = check_plan(Plan("m", {}, 0, (LayerPlan("nowhere"), head, head)), graph)
    assert "nowhere: the network has no such layer." in faults
    assert "head: the plan names this layer twice." in faults
    assert "head: only a convolution with one group can be made grouped." in faults
    assert "stem: the plan says nothing of this layer." in faults


def test_files_that_are_no_plan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(InputError, match="cannot be read"):
        load_plan(path)
    for text in ("", "{", "[]", '{"method": 3}', '{"method": "m", "settings": {}, "seed": 0, "layers": [], "more": 1}'):
        path.write_text(text)
        with pytest.raises(InputError, match="is no plan"):
            load_plan(path)
    path.write_text('{"method": "m", "settings": {}, "seed": 0, "layers": [], "schema_version": 99}')
    with pytest.raises(InputError, match="plan schema 99"):
        load_plan(path)


def test_layers_that_miss_the_block_are_named_beforehand(graph: Graph) -> None:
    plan = random_plan(graph, 2, overlap=False, share=True)  # 8 and 16 channels a group
    assert off_block_note(plan, graph, 8, ("--groups", "--rate")) == ""
    note = off_block_note(plan, graph, 16, ("--groups", "--rate"))
    assert "grouped layers (a, b, ...)" in note
    assert (
        "--align auto chooses multiples; or choose --groups and --rate so that filters and kept channels a group are multiples of 16"
        in note
    )
    assert "--rate" not in off_block_note(plan, graph, 16, amount_flags("gconv"))


def test_thinner_layers_that_miss_the_block_are_named_beforehand(graph: Graph) -> None:
    layer = next(layer for layer in graph.layers if layer.name == "a")
    sets = (SetPlan(layer.writes, tuple(range(layer.out_channels - 3))),)
    plan = Plan("sfp", {}, 0, tuple(LayerPlan(layer.name) for layer in graph.layers), sets)
    writers = [other.name for other in graph.layers if other.writes == layer.writes]
    note = off_block_note(plan, graph, 4, amount_flags("sfp"))
    assert f"{len(writers)} of {len(writers)} thinner layers ({', '.join(writers[:2])}" in note
    assert "or choose --rate so that the filters that are kept are multiples of 4, or leave" in note
    assert "choose" not in off_block_note(plan, graph, 4, amount_flags("masked"))
    assert off_block_note(plan, graph, 1, amount_flags("sfp")) == ""
