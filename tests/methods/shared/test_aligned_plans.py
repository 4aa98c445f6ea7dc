"""Every method's plan with --align: counts on the block, the multiply-adds asked for, and what the plan tells of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.datasets.images import Dataset
from edgeprune.deployment.parity import measure_parity, random_inputs, require_parity
from edgeprune.errors import InputError
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.methods import OneShot, Trained, load_method
from edgeprune.methods.base import MethodInput, MethodResult, PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.onnx_files.model import save_onnx
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import off_block_note, planned_macs, planned_params
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.plan import Plan, load_plan
from edgeprune.pruning.method_inputs import method_input
from edgeprune.pruning.network import layer_weights
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace
from edgeprune.training.loop import fit
from edgeprune.training.settings import TrainSettings
from edgeprune.zoo import build

LOOP = TrainSettings(epochs=2, batch_size=16, learning_rate=0.02, augment=False, device="cpu", precision="fp32")


def given(arch: str = "resnet8", size: int = 32, **request: Any) -> tuple[nn.Module, MethodInput]:
    torch.manual_seed(0)
    model = networks.settled(build(arch).model)
    graph = trace(model, torch.zeros(1, 3, size, size)).graph
    return model, method_input(load_method("sfp"), model, graph, PruneRequest(**request))


def prune(method: str, inputs: MethodInput, **chosen: Any) -> MethodResult:
    module = load_method(method)
    assert isinstance(module, OneShot)
    return module.prune(inputs, module.Settings(**chosen))


def train(method: str, inputs: MethodInput, epochs: int, **chosen: Any) -> Any:
    module = load_method(method)
    assert isinstance(module, Trained)
    return module.train(inputs, module.Settings(**chosen), epochs)


def noise(size: int) -> Dataset:
    pixels = torch.randn(48, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", pixels, torch.arange(48) % 10, (), (0.0,) * 3, (1.0,) * 3)


def macs(plan: Plan, inputs: MethodInput) -> int:
    return sum(planned_macs(plan, inputs.graph).values())


# -- groups ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", [4, 8, 16])
def test_groups_and_kept_kernels_of_tmi_gkp_are_multiples_of_the_block(block: int, tmp_path: Path) -> None:
    _, inputs = given(align=block)
    result = prune("tmi-gkp", inputs, scheme="spectral")
    plan = result.plan
    assert check_plan(plan, inputs.graph) == []
    assert plan.grouped()
    assert plan.settings["align"] == block
    assert off_block_note(plan, inputs.graph, block, ("--groups", "--rate")) == ""
    for entry in plan.layers:
        layer = inputs.graph.layer(entry.name)
        if not entry.is_dense:
            assert {len(filters) % block for filters in entry.filters} == {0}
            assert entry.kept % block == 0
            assert 2 <= entry.groups <= 8
        asked = round(layer.in_channels * 0.5625)
        assert entry.asked_groups == (0 if entry.groups == 8 or "aligned" not in entry.note else 8)
        assert entry.asked_kept == (0 if entry.kept == asked or "aligned" not in entry.note else asked)
        if entry.asked_groups or entry.asked_kept:
            assert f"aligned to blocks of {block}: asked were 8 groups of {asked}" in entry.note
    assert any(entry.asked_groups for entry in plan.layers)
    assert any(entry.asked_kept for entry in plan.layers)
    assert prune("tmi-gkp", inputs, scheme="spectral").plan.sha256() == plan.sha256()
    path = tmp_path / "plan.json"
    path.write_bytes(plan.to_readable_json())
    assert load_plan(path) == plan


@pytest.mark.parametrize(("block", "within"), [(4, True), (8, True), (16, False)])
def test_tmi_gkp_needs_no_more_than_was_asked_or_says_how_much(block: int, within: bool) -> None:
    _, inputs = given(align=block)
    plain = prune("tmi-gkp", dataclasses.replace(inputs, request=PruneRequest()), scheme="spectral").plan
    result = prune("tmi-gkp", inputs, scheme="spectral")
    assert (macs(result.plan, inputs) <= macs(plain, inputs)) == within
    said = [note for note in result.notes if note.startswith(f"Blocks of {block} leave")]
    assert len(said) == (0 if within else 1)
    if said:
        shares = [f"{macs(plan, inputs) / inputs.graph.macs:.1%}" for plan in (result.plan, plain)]
        assert said[0].startswith(f"Blocks of 16 leave {shares[0]} of the multiply-adds where {shares[1]} were asked")
    assert not any(entry.asked_groups for entry in plain.layers)


def test_narrow_layers_stay_dense_with_the_reason() -> None:
    _, inputs = given(align=16)
    plan = prune("tmi-gkp", inputs, scheme="spectral").plan
    notes = {entry.name: entry.note for entry in plan.layers}
    asked = "aligned to blocks of 16: asked were 8 groups of 9"
    assert notes["layer1.0.conv1"] == f"{asked}, but 16 filters make no 2 to 8 groups of whole blocks"
    assert notes["layer2.0.conv1"] == f"{asked}, but 16 input channels are no more than a block"
    assert plan.grouped()["layer2.0.conv2"].groups == 2
    with pytest.raises(InputError, match=r"can be grouped in blocks of 64 .*; a smaller --align, or --align none"):
        prune("tmi-gkp", given(align=64)[1], scheme="spectral")


def test_followers_copy_aligned_clusters_and_a_record_is_used_again(tmp_path: Path) -> None:
    _, inputs = given("resnet14", align=8)
    result = prune("tmi-gkp", inputs, scheme="spectral")
    grouped = result.plan.grouped()
    assert grouped["layer3.0.conv2"].filters == grouped["layer3.1.conv2"].filters
    path = tmp_path / "clustering.json"
    path.write_bytes(result.records["clustering.json"])
    again = prune("tmi-gkp", inputs, clusters=str(path)).plan.grouped()
    assert {name: entry.filters for name, entry in again.items()} == {n: e.filters for n, e in grouped.items()}
    with pytest.raises(InputError, match="expected 16 filters in 8 equal groups"):
        prune("tmi-gkp", given("resnet14")[1], clusters=str(path))


def test_an_aligned_resnet20_exports_with_parity(tmp_path: Path) -> None:
    model, inputs = given("resnet20", align=8)
    example = torch.zeros(2, 3, 32, 32)
    plan = prune("tmi-gkp", inputs, scheme="spectral").plan
    pruned = rewrite(model, plan, inputs.graph)
    save_onnx(to_onnx(fold(pruned, example).module, example), tmp_path / "model.onnx")
    images = {"three": random_inputs((3, 32, 32), 0, 3)}
    reference = masked(pruned, model, plan, inputs.graph).double()
    with torch.no_grad():
        wanted = {name: [reference(torch.from_numpy(x).double()).numpy()] for name, x in images.items()}
    require_parity(measure_parity(tmp_path / "model.onnx", images, wanted))


# -- thinner layers ----------------------------------------------------------------------------------------------------
def check_on_block(plan: Plan, inputs: MethodInput, block: int) -> None:
    """What each set and each branch keeps is a multiple of the block, or whole and no wider than a block or so asked."""
    assert check_plan(plan, inputs.graph) == []
    kept = KeptChannels(plan, inputs.graph)
    for layer in inputs.graph.layers:
        filters = kept.filters(layer)
        assert filters.is_all or len(filters.index) % block == 0, layer.name


@pytest.mark.parametrize("coupling", ["separate", "coupled"])
@pytest.mark.parametrize("method", ["sfp", "asfp", "fpgm", "fpgm-mix"])
def test_filter_pruning_keeps_multiples_of_the_block(method: str, coupling: str) -> None:
    _, inputs = given("resnet20", rate=0.4, align=8)
    result = prune(method, inputs, coupling=coupling)
    check_on_block(result.plan, inputs, 8)
    plain = dataclasses.replace(inputs, request=PruneRequest(rate=0.4))
    asked = prune(method, plain, coupling=coupling).plan
    assert 0.9 * macs(asked, inputs) < macs(result.plan, inputs) <= macs(asked, inputs)
    assert result.notes == ()
    assert result.plan.settings["align"] == 8
    assert result.plan == prune(method, inputs, coupling=coupling).plan
    notes = {entry.name: entry.note for entry in result.plan.sets}
    assert "aligned to blocks of 8: asked were 39 of 64 filters" in notes.values()
    if coupling == "separate":
        ends = {entry.name: entry for entry in result.plan.layers if entry.kept_filters}
        assert ends["layer3.2.conv2"].note == "aligned to blocks of 8: asked were 39 of 64 filters"


def test_without_alignment_nothing_is_said_of_it() -> None:
    _, inputs = given(rate=0.4)
    plan = prune("sfp", inputs).plan
    assert "aligned" not in plan.to_json().decode()


def test_where_narrow_layers_stay_whole_the_others_pay_and_a_note_says_the_rest() -> None:
    _, inputs = given("resnet20", rate=0.4, align=16)
    result = prune("sfp", inputs)
    check_on_block(result.plan, inputs, 16)
    (note,) = result.notes
    assert note.startswith("Blocks of 16 leave 52.4% of the multiply-adds where 50.1% were asked")
    by_name = {entry.name: entry for entry in result.plan.layers}
    assert by_name["layer1.0.conv1"].note == "aligned to blocks of 16: asked were 10 of 16 filters, and all stay"
    assert len(by_name["layer3.2.conv2"].kept_filters) == 16


@pytest.mark.parametrize("budget", [Budget(macs=0.6), Budget(params=0.6), Budget(macs=0.7, params=0.5)])
def test_a_budget_holds_on_the_block(budget: Budget) -> None:
    _, inputs = given("resnet20", budget=budget, align=8)
    plan = prune("fpgm", inputs).plan
    check_on_block(plan, inputs, 8)
    shares = {"macs": macs(plan, inputs) / inputs.graph.macs}
    shares["params"] = planned_params(plan, inputs.graph) / inputs.graph.params
    assert all(shares[name] <= share for name, share in budget.shares.items())
    assert any(shares[name] > 0.9 * share for name, share in budget.shares.items())


def test_a_budget_that_the_blocks_miss_is_refused_with_the_nearest() -> None:
    message = (
        r"--budget macs=0.4 cannot be met in blocks of 16 channels; expected macs=0.\d+ or more; a smaller --align"
    )
    with pytest.raises(InputError, match=message):
        prune("sfp", given("resnet20", budget=Budget(macs=0.4), align=16)[1])


def test_blocks_in_which_no_filter_goes_are_refused() -> None:
    with pytest.raises(
        InputError, match="takes no filter of any layer in blocks of 64; expected layers of more than 64"
    ):
        prune("sfp", given(align=64)[1])
    with pytest.raises(InputError, match="--rate 0.01 takes no filter of any layer; expected 0.016 or more"):
        prune("sfp", given(align=8, rate=0.01)[1])


def test_what_a_layer_rate_leaves_whole_stays_whole() -> None:
    _, inputs = given("resnet20", rate=0.4, align=16, layer_rates=(("layer3.*", 0.0),))
    plan = prune("sfp", inputs).plan
    kept = KeptChannels(plan, inputs.graph)
    assert all(kept.filters(layer).is_all for layer in inputs.graph.layers if layer.name.startswith("layer3"))


@pytest.mark.parametrize("factory", [networks.Residual, networks.Concatenating, networks.Mobile, networks.Shuffled])
@pytest.mark.parametrize("block", [2, 8])
def test_awkward_networks_can_be_aligned(factory: type[nn.Module], block: int) -> None:
    torch.manual_seed(0)
    model = networks.settled(factory())
    graph = trace(model, torch.zeros(1, 3, 16, 16)).graph
    request = PruneRequest(rate=0.3, include_first=True, include_shortcuts=True, align=block)
    inputs = MethodInput(graph, layer_weights(model), request)
    for coupling in ("separate", "coupled"):
        plan = prune("sfp", inputs, coupling=coupling).plan
        check_on_block(plan, inputs, block)
        assert rewrite(model, plan, graph)(torch.zeros(1, 3, 16, 16)).shape == model(torch.zeros(1, 3, 16, 16)).shape


# -- while training ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("sfp", {"rate": 0.4}),
        ("asfp", {"rate": 0.4}),
        ("csgd", {"rate": 0.375}),
        ("csgd", {"budget": Budget(macs=0.6)}),
        ("lfpc", {"rate": 0.4}),
        ("lfpc", {"budget": Budget(macs=0.6)}),
    ],
)
def test_training_ends_on_the_block(method: str, request_: dict[str, Any]) -> None:
    model, inputs = given(size=8, align=8, **request_)
    chosen = {"validation_share": 0.5, "validation_batch": 16} if method == "lfpc" else {}
    run = train(method, inputs, 2, **chosen)
    trained = fit(model, noise(8), LOOP, hooks=run.hooks).model
    result = run.result(trained)
    check_on_block(result.plan, inputs, 8)
    assert result.plan.thins
    assert result.plan.settings["align"] == 8
    budget = request_.get("budget")
    if budget is not None:
        assert macs(result.plan, inputs) <= budget.macs * inputs.graph.macs
    told = [entry.note for entry in (*result.plan.layers, *result.plan.sets)]
    assert any(note.startswith("aligned to blocks of 8: asked were ") for note in told)
    small, images = rewrite(trained, result.plan, inputs.graph).eval(), torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(small(images), trained.eval()(images), rtol=1e-4, atol=1e-4)


def test_lfpc_says_what_its_rates_cannot_reach_on_the_block() -> None:
    with pytest.raises(InputError, match="budget macs=0.3 cannot be met.*smaller --align"):
        train("lfpc", given(budget=Budget(macs=0.3), align=16)[1], 2)
    with pytest.raises(InputError, match="the rates take no filter of any layer in blocks of 64"):
        train("lfpc", given(align=64)[1], 2)


def test_what_decides_by_itself_takes_no_alignment() -> None:
    with pytest.raises(InputError, match="masked takes no --align 16: the masks decide"):
        prune("masked", given(align=16)[1])
    with pytest.raises(InputError, match="squeeze_to and --align were given"):
        train("csgd", given("resnet8-w24", align=8)[1], 2, squeeze_to="resnet8")


# -- in Python ---------------------------------------------------------------------------------------------------------
def test_the_library_takes_a_block_or_a_device_profile() -> None:
    model, example = build("resnet8").model, torch.zeros(1, 3, 32, 32)

    def pruned(**chosen: Any) -> edgeprune.pruning.pruned.Pruned:
        return edgeprune.prune(model, example, method="sfp", rate=0.4, settings={"coupling": "coupled"}, **chosen)

    assert pruned().plan.settings["align"] == pruned(align="none").plan.settings["align"] == 1
    aligned = pruned(align="auto", device_profile="x86-avx2")
    assert aligned.plan == pruned(align=8).plan
    layers = {layer.name: layer for layer in aligned.summary().layers}
    assert layers["layer3.0.conv1"].filters % 8 == 0
    assert layers["layer3.0.conv1"].note == "aligned to blocks of 8: asked were 39 of 64 filters"
    run = edgeprune.train(
        model, torch.zeros(1, 3, 8, 8), noise(8), method="sfp", rate=0.4, align=np.int64(8), training=LOOP
    )
    assert run.plan.settings["align"] == 8


@pytest.mark.parametrize("align", [1.5, "x", None, "", 0, -4])
def test_alignments_that_make_no_sense_are_refused(align: Any) -> None:
    with pytest.raises(InputError, match="--align .*; expected auto, none, or a "):
        edgeprune.prune(build("resnet8").model, torch.zeros(1, 3, 32, 32), align=align)
