"""Estimates: what a network computes and moves over the rates of a device profile, against sums done by hand."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import small_bundle as small
from estimate_cases import COSTS, DEVICE, SOURCES, Conv, network, rates, relu
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper

from edgeprune.bundles.names import PROFILE
from edgeprune.cli import main
from edgeprune.devices.device_profile import list_profiles, load_profile
from edgeprune.devices.figures import Figure
from edgeprune.errors import InputError
from edgeprune.profiling.estimating.estimates import estimate, estimate_nodes, total_ms
from edgeprune.profiling.estimating.node_work import NodeWork, node_works
from edgeprune.profiling.result import load_profile_result

MIB = 2**20


BOUND_ONLY = msgspec.structs.replace(DEVICE, execution=None)


def works(model: ModelProto, *, block: int = 16, reorders: bool = False, batch: int = 1) -> dict[str, NodeWork]:
    return {work.name: work for work in node_works(model, batch, block, reorders=reorders)}


def test_without_what_execution_costs_an_estimate_is_a_bound() -> None:
    (node,) = estimate_nodes(network(Conv(32, 32), channels=32), BOUND_ONLY)
    macs = 32 * 32 * 9 * 64
    assert node.compute == pytest.approx(macs / 1e9)
    assert node.weights == pytest.approx(4 * 32 * 32 * 9 / 1e9)
    assert node.moving == pytest.approx(2 * 4 * 32 * 64 / 1e9)
    assert node.seconds == pytest.approx(max(node.compute, node.weights) + node.moving)
    assert "takes at least so long" in estimate(None, network(Conv(32, 32), channels=32), BOUND_ONLY).source


def test_a_convolution_multiplies_at_the_rate_of_its_shape_and_is_started() -> None:
    model = network(Conv(32, 32), Conv(32, 16), Conv(16, 24), channels=32)
    plain = msgspec.structs.replace(
        DEVICE, execution=msgspec.structs.replace(COSTS, bandwidths={"operation": COSTS.bandwidths["operation"]})
    )
    full, half, filled = estimate_nodes(model, plain)
    assert full.compute == pytest.approx(32 * 32 * 9 * 64 / 1e9)
    assert half.compute == pytest.approx(32 * 16 * 9 * 64 / 1e9 / 0.5)
    assert filled.compute == pytest.approx(16 * 32 * 9 * 64 / 1e9)  # 24 filters fill two blocks
    assert full.dispatch == pytest.approx(1e-5)
    assert full.moving == pytest.approx(2 * 4 * 32 * 64 / 4e9)
    assert total_ms((full, half)) == pytest.approx((full.seconds + half.seconds) * 1e3)


@pytest.mark.parametrize(
    ("layer", "share"),
    [
        (Conv(32, 32, 2), 0.5),
        (Conv(32, 32, 4), 0.1),
        (Conv(32, 32, 32), 0.25),
        (Conv(64, 64, 2, size=1), 1.0),
        (Conv(32, 32, 4, size=1), 0.1),
        (Conv(8, 32), 1.0),
    ],
)
def test_a_kind_that_nobody_measured_runs_like_its_nearest(layer: Conv, share: float) -> None:
    (node,) = estimate_nodes(network(layer, channels=layer.inputs), DEVICE)
    macs = layer.inputs // layer.groups * layer.filters * layer.size**2 * 64
    assert node.compute == pytest.approx(macs / 1e9 / share)


def test_factors_stand_between_the_widths_and_depths_that_were_measured() -> None:
    kind = rates({16: 0.4, 32: 0.6}, by_width={7: 0.5, 28: 1.0}, by_depth={100: 0.5, 300: 1.0})
    assert kind.share(24, 28, 300) == pytest.approx(0.5)
    assert kind.share(64, 7, 300) == pytest.approx(0.3)
    assert kind.share(8, 100, 50) == pytest.approx(0.2)
    assert kind.share(32, 14, 200) == pytest.approx(0.6 * (0.5 + 0.5 / 3) * 0.75)


def test_what_is_computed_along_with_a_convolution_costs_only_what_it_reads_more() -> None:
    add = helper.make_node("Add", ["conv2", "conv0_relu"], ["sum"], "sum")
    model = network(
        Conv(16, 16), relu("conv0", "conv0_relu"), Conv(16, 16), add, relu("sum", "out"), Conv(16, 16), channels=16
    )
    alone, behind = works(network(Conv(16, 16), channels=16))["conv0"], works(model)
    tensor = 4 * 16 * 64
    assert [behind[name].launches for name in ("conv0_relu", "sum", "out")] == [0, 0, 0]
    assert behind["conv0"].moved_bytes == alone.moved_bytes == 2 * tensor
    assert behind["conv2"].moved_bytes == 3 * tensor
    assert behind["sum"].layer == behind["out"].layer == "conv2"


@pytest.mark.parametrize(
    ("residual", "groups", "starts"),
    [("conv0", 1, 0), ("conv0", 2, 0), ("conv0", 4, 1), ("input", 1, 1)],
    ids=["on the block", "grouped on the block", "convolution off the block", "residual in the plain layout"],
)
def test_a_residual_is_computed_along_where_both_are_in_the_layout_of_the_fast_kernels(
    residual: str, groups: int, starts: int
) -> None:
    add = helper.make_node("Add", ["conv1", residual], ["sum"], "sum")
    model = network(Conv(32, 32), Conv(32, 32, groups), add, channels=32)
    assert works(model, reorders=True)["sum"].starts == starts
    assert works(model)["sum"].starts == 0


def test_an_activation_of_a_value_that_others_read_runs_by_itself() -> None:
    add = helper.make_node("Add", ["conv0", "act"], ["sum"], "sum")
    found = works(network(Conv(16, 16), relu("conv0", "act"), add, channels=16))
    assert (found["act"].launches, found["sum"].launches) == (1, 1)
    assert found["act"].moved_bytes == 2 * 4 * 16 * 64
    assert found["sum"].moved_bytes == 3 * 4 * 16 * 64


def test_a_gather_between_fast_convolutions_is_reordered_for_twice() -> None:
    order = helper.make_node("Constant", [], ["order"], "order", value_ints=list(range(16)))
    gather = helper.make_node("Gather", ["conv0", "order"], ["moved"], "gather", axis=1)
    model = network(Conv(16, 16), gather, Conv(16, 16), channels=16)
    model.graph.node.insert(0, order)
    found, tensor = works(model, reorders=True), 4 * 16 * 64
    assert found["conv0"].reordered_bytes == 2 * tensor  # the input, which has a block of channels
    assert found["gather"].reordered_bytes == found["conv2"].reordered_bytes == 2 * tensor
    assert (found["gather"].launches, found["order"].launches) == (2, 0)
    node = next(node for node in estimate_nodes(model, DEVICE) if node.work.name == "gather")
    assert node.moving == pytest.approx(2 * tensor / 0.5e9)
    assert node.reorder == pytest.approx(2 * tensor / 0.25e9)
    assert not any(work.reordered_bytes for work in works(model).values())


def test_convolutions_off_the_block_leave_the_fast_layout_and_images_are_read_as_they_are() -> None:
    found = works(network(Conv(3, 32), Conv(32, 32, 4), Conv(32, 32, 4), Conv(32, 32), channels=3), reorders=True)
    assert [bool(work.reordered_bytes) for work in found.values()] == [False, True, False, True]
    kinds = [work.kernel.kind for work in found.values() if work.kernel]
    assert kinds == ["image", "off_block", "off_block", "spatial"]


def test_many_bytes_come_slower_and_from_memory_at_last() -> None:
    assert DEVICE.bytes_per_s_of(1, MIB / 2) == 4e9
    assert DEVICE.bytes_per_s_of(1, 2 * MIB) == 3e9
    assert DEVICE.bytes_per_s_of(1, 3.01 * MIB) == DEVICE.memory_bytes_per_s_of(1) == 1e9
    assert DEVICE.bytes_per_s_of(4, MIB) == 1e9 + 4 * 3e9  # four caches in front of one memory
    assert DEVICE.bytes_per_s_of(1, 9 * MIB, "gather") == 0.5e9  # slower than memory is
    assert BOUND_ONLY.bytes_per_s_of(1, MIB, "gather") == 1e9
    big, little = (
        estimate_nodes(network(Conv(512, channels, size=1), channels=512, side=1), DEVICE)[0]
        for channels in (2048, 256)
    )
    assert big.weights == pytest.approx(4 * 512 * 2048 / 1e9)
    assert little.weights == pytest.approx(4 * 512 * 256 / 4e9)


def test_threads_work_on_cores_of_their_own() -> None:
    one_core = msgspec.structs.replace(
        DEVICE, core_gflops_fp32=Figure(5, *SOURCES), core_gb_per_s=Figure(0.4, *SOURCES)
    )
    assert [DEVICE.macs_per_s_of(threads) for threads in (1, 2, 4, 9)] == [1e9, 2e9, 4e9, 4e9]
    assert [one_core.macs_per_s_of(threads) for threads in (1, 2, 4)] == [2.5e9, 3e9, 4e9]
    assert one_core.memory_bytes_per_s_of(1) == 0.4e9
    assert load_profile("nvidia-t4").macs_per_s_of(1) == load_profile("nvidia-t4").macs_per_s
    for threads in (0, 5):
        with pytest.raises(InputError, match="1 to 4, one a core"):
            estimate(None, network(Conv(16, 16), channels=16), DEVICE, threads=threads)


def test_dense_and_pruned_stand_side_by_side_layer_by_layer() -> None:
    found = estimate(*small.models(), DEVICE, batch=2, threads=2)
    assert (found.device, found.batch_size, found.threads) == ("made-up", 2, 2)
    told = "estimate from measured figures of made-up"
    assert found.source == f"{told}; without what threads wait for each other"
    assert estimate(*small.models(), DEVICE).source == told
    assert [layer.name for layer in found.layers] == [small.STEM, small.MIDDLE, small.LAST, small.HEAD]
    assert found.dense_ms is not None
    assert found.speedup == pytest.approx(found.dense_ms / found.pruned_ms, rel=1e-4)
    stem, middle, *_ = found.layers
    assert stem.dense_ms == stem.pruned_ms
    assert middle.dense_ms != middle.pruned_ms
    assert math.fsum(layer.pruned_ms for layer in found.layers) < found.pruned_ms  # pooling belongs to no layer
    alone = estimate(None, small.models()[1], DEVICE, batch=2, threads=2)
    assert (alone.dense_ms, alone.speedup, alone.pruned_ms) == (None, None, found.pruned_ms)
    assert {layer.dense_ms for layer in alone.layers} == {None}


def test_a_profile_holds_estimates_for_every_device_and_batch_size_and_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
    asked = [
        "--batch-size",
        "1,4",
        "--device-profile",
        "raspberry-pi-5,nvidia-t4",
        "--iterations",
        "3",
        "--warmup",
        "1",
    ]
    assert main(["profile", str(bundle), *asked, "--no-per-layer"]) == 0
    kept = load_profile_result(bundle / PROFILE).estimates
    dense, pruned = small.models()
    expected = [
        estimate(dense, pruned, load_profile(device), batch)
        for device in ("raspberry-pi-5", "nvidia-t4")
        for batch in (1, 4)
    ]
    assert list(kept) == expected
    shown = capsys.readouterr().out
    assert "estimates: nothing of this was measured" in shown
    assert "estimate from derived and uncertain figures of raspberry-pi-5" in shown
    assert main(["profile", str(bundle / "model.onnx"), "--iterations", "3", "--warmup", "1"]) == 0
    assert "estimate" not in capsys.readouterr().out


def test_how_sure_an_estimate_is_stands_in_its_words() -> None:
    model = network(Conv(16, 16), channels=16)
    told = {name: estimate(None, model, load_profile(name)).source for name in list_profiles()}
    assert told["raspberry-pi-5"] == "estimate from derived and uncertain figures of raspberry-pi-5"
    assert all("uncertain" in text for text in told.values())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*list_profiles(), "made-up"]),
    groups=st.sampled_from([1, 2, 8]),
    channels=st.integers(1, 12).map(lambda number: 8 * number),
    side=st.integers(2, 40),
    batch=st.integers(1, 4),
    more=st.integers(1, 8),
)
def test_more_work_never_takes_less_time(
    name: str, groups: int, channels: int, side: int, batch: int, more: int
) -> None:
    profile = DEVICE if name == "made-up" else load_profile(name)

    def took(side: int, batch: int, layers: int = 1, threads: int = 1) -> float:
        convs = [Conv(channels, channels, groups)] * layers
        return total_ms(estimate_nodes(network(*convs, channels=channels, side=side), profile, batch, threads))

    base = took(side, batch)
    assert base > 0
    assert took(side + more, batch) >= base
    assert took(side, batch + more) >= base
    assert took(side, batch, layers=2) >= base
    if profile.kind == "cpu":
        assert took(side, batch, threads=profile.cores) <= base
