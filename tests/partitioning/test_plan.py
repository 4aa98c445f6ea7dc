"""What plans take into account: links, speeds, memory, and what the devices are to be fast at."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from edgeprune.devices.device_profile import load_profile
from edgeprune.devices.figures import ExchangeCosts, Figure
from edgeprune.errors import GateError, InputError
from edgeprune.partitioning.devices import Device, LinkRate
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.partitioning.partition import check_partition, partition_model, write_partition
from edgeprune.pipeline.split import require_gain
from edgeprune.runners.onnxruntime.runner import OrtRunner

PI_5 = load_profile("raspberry-pi-5")


def with_exchange(message_ms: float, gb_per_s: float):
    """The device with engines that take so long."""
    costs = ExchangeCosts(Figure(message_ms, "measured", "a test"), Figure(gb_per_s, "measured", "a test"))
    return msgspec.structs.replace(PI_5, exchange=costs)


PROFILE = with_exchange(1e-6, 1e6)
"""Engines that take nothing: these networks are small."""
CHANNELS, LAYERS = 64, 6


def weight(name, *shape):
    values = np.random.default_rng(len(name)).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return numpy_helper.from_array(values.astype(np.float32), name)


def network(groups=4, layers=LAYERS, size=32, classes=10):
    """A dense layer on the image, grouped layers with their activations, and a classifier."""
    body, held = "v0 = Conv<pads=[1,1,1,1]>(x, w0) ", [weight("w0", CHANNELS, 3, 3, 3)]
    for layer in range(1, layers + 1):
        body += f"c{layer} = Conv<group={groups}, pads=[1,1,1,1]>(v{layer - 1}, w{layer}) v{layer} = Relu(c{layer}) "
        held.append(weight(f"w{layer}", CHANNELS, CHANNELS // groups, 3, 3))
    body += f"p = GlobalAveragePool(v{layers}) f = Flatten(p) y = Gemm<transB=1>(f, head, bias)"
    held += [weight("head", classes, CHANNELS), weight("bias", classes)]
    text = f'<ir_version: 9, opset_import: ["" : 20]> g (float[batch,3,{size},{size}] x) => (float[batch,c] y) {{ {body} }}'
    model = parser.parse_model(text)
    model.graph.initializer.extend(held)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


def devices(count=2, mbit=10_000.0, round_trip_ms=0.02, **more):
    return [Device(f"d{n}", PROFILE, link=LinkRate(mbit, round_trip_ms), **more) for n in range(count)]


def whole_bytes(model):
    return partition_model(model, devices(1)).manifest.devices[0].peak_memory_bytes


def run_both(model, partition, folder):
    write_partition(partition, folder)
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    x = np.random.default_rng(1).standard_normal((2, 3, size, size)).astype(np.float32)
    with OrtRunner(model) as whole, LocalExecutor(folder) as parts:
        expected, found = whole.run({"x": x})["y"], parts.run({"x": x})["y"]
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def test_grouped_layers_in_a_row_are_nearly_independent_halves(tmp_path):
    model = network()
    partition = partition_model(model, devices())
    manifest = partition.manifest
    assert manifest.predicted.speedup > 1.7
    one, other = manifest.devices
    assert one.macs == pytest.approx(other.macs, rel=0.05)
    image, logits = 3 * 32 * 32 * 4, 10 * 4
    assert manifest.predicted.bytes_per_inference <= image + CHANNELS * 4 + 2 * logits
    run_both(model, partition, tmp_path)


def test_on_slow_links_one_device_is_recommended_and_a_split_refused():
    predicted = partition_model(network(), devices(mbit=1.0, round_trip_ms=50.0)).manifest
    assert predicted.predicted.speedup < 1
    with pytest.raises(GateError, match=r"d0 alone .* --force"):
        require_gain(predicted)
    require_gain(partition_model(network(), devices()).manifest)


def test_a_tensor_is_exchanged_where_it_is_small():
    """Groups of another partition in the middle need all channels: behind the pooling that is a quarter of the bytes."""
    body = (
        "a = Conv<group=2, pads=[1,1,1,1]>(x, w1) b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
        "c = Gather<axis=1>(b, o) y = Conv<group=2, pads=[1,1,1,1]>(c, w1)"
    )
    text = (
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[batch,64,32,32] x) => (float[batch,c,h,w] y) {{ {body} }}'
    )
    model = parser.parse_model(text)
    order = np.arange(64).reshape(2, 32).T.reshape(-1)
    model.graph.initializer.extend([weight("w1", 64, 32, 3, 3), numpy_helper.from_array(order, "o")])
    manifest = partition_model(model, devices(mbit=1e5)).manifest
    between = [move.bytes for move in manifest.transfers if move.tensor.startswith(("a", "b", "c"))]
    assert between
    assert all(size == 16 * 16 * 16 * 4 for size in between)  # half of what each lacks


def test_what_engines_take_is_in_the_prediction():
    model, ends = network(), []
    for profile in (PROFILE, with_exchange(0.5, 1e6), with_exchange(1e-6, 0.01)):
        given = [Device(name, profile, link=LinkRate(1e5, 0.0)) for name in ("d0", "d1")]
        predicted = partition_model(model, given).manifest.predicted
        image = next(span for span in predicted.timeline if span.kind == "transfer")
        begun = min(span.start_ms for span in predicted.timeline if (span.kind, span.device) == ("compute", "d1"))
        ends.append((image.end_ms - image.start_ms, begun))
    (free, at_once), (waits, later), (copies, _) = ends
    assert later == pytest.approx(at_once + 0.5, abs=1e-3)
    assert waits == pytest.approx(free, abs=1e-3)
    assert copies == pytest.approx(3 * 32 * 32 * 4 / 0.01e9 * 1e3, rel=0.05)


def test_a_slower_device_gets_less():
    fast, slow = load_profile("raspberry-pi-5"), load_profile("raspberry-pi-4")
    given = [Device("fast", fast, link=LinkRate(1e5, 0.0)), Device("slow", slow, link=LinkRate(1e5, 0.0))]
    one, other = partition_model(network(groups=16, layers=12), given).manifest.devices
    assert 0 < other.macs < one.macs / 1.5


def test_threads_change_what_is_predicted():
    one = partition_model(network(), devices(1, threads=1)).manifest.predicted.latency_ms
    assert one > 1.5 * partition_model(network(), devices(1)).manifest.predicted.latency_ms


def test_the_link_of_a_pair_is_used():
    slow = LinkRate(1.0, 100.0)
    given = [
        Device("a", PROFILE, link=LinkRate(1e5, 0.0), links={"b": slow}),
        Device("b", PROFILE, link=LinkRate(1e5, 0.0), links={"a": slow}),
        Device("c", PROFILE, link=LinkRate(1e5, 0.0)),
    ]
    manifest = partition_model(network(), given).manifest
    assert not [move for move in manifest.transfers if {move.from_, move.to} == {"a", "b"}]


@pytest.mark.parametrize("share", [0.7, 0.8])
@pytest.mark.parametrize("mbit", [1e5, 10.0])
def test_a_network_too_large_for_each_device_is_divided_so_that_it_fits(share, mbit, tmp_path):
    model = network(groups=4, size=8, layers=10)
    limit = whole_bytes(model) * share / 1e6
    partition = partition_model(model, devices(2, mbit=mbit, memory_mb=limit))
    manifest = partition.manifest
    assert all(entry.peak_memory_bytes <= limit * 1e6 for entry in manifest.devices)
    assert all(entry.macs for entry in manifest.devices)
    assert manifest.predicted.single_device_ms is None
    require_gain(manifest)
    assert check_partition(manifest, partition.models) == []
    run_both(model, partition, tmp_path)


def test_a_dense_network_too_large_for_each_device_is_divided_too(tmp_path):
    model = network(groups=1, size=8)
    limit = whole_bytes(model) * 0.7 / 1e6
    partition = partition_model(model, devices(2, memory_mb=limit))
    assert all(entry.peak_memory_bytes <= limit * 1e6 for entry in partition.manifest.devices)
    run_both(model, partition, tmp_path)


def test_a_network_that_fits_nowhere_is_refused_with_the_figures():
    with pytest.raises(InputError, match=r"takes \d+\.\d MB in one piece, and no division of it fits d0 0\.1 MB"):
        partition_model(network(groups=1), devices(2, memory_mb=0.1))


def test_a_small_device_beside_a_large_one_gets_what_fits_it():
    model = network(groups=16, size=8, layers=10)
    small = whole_bytes(model) * 0.3 / 1e6
    given = [Device("large", PROFILE, link=LinkRate(1e5, 0.0)), Device("small", PROFILE, memory_mb=small)]
    manifest = partition_model(model, given).manifest
    assert manifest.devices[1].peak_memory_bytes <= small * 1e6


@pytest.mark.parametrize(("mbit", "faster"), [(1e5, 2.0), (2.0, 1.0)])
def test_many_frames_are_computed_whole_as_far_as_the_link_carries_them(mbit, faster):
    model = network()
    manifest = partition_model(model, devices(2, mbit=mbit), goal="throughput").manifest
    throughput = manifest.predicted.throughput
    alone = partition_model(model, devices(1)).manifest.predicted.latency_ms
    assert throughput.mode == "whole_frames"
    assert throughput.devices == ("d0", "d1")
    assert throughput.frames_per_s * alone / 1e3 == pytest.approx(faster, rel=0.15)
    require_gain(manifest)


def test_many_frames_of_a_network_too_large_for_each_device_go_through_a_pipeline():
    model = network(groups=4, size=8, layers=10)
    limit = whole_bytes(model) * 0.8 / 1e6
    throughput = partition_model(model, devices(2, memory_mb=limit), goal="throughput").manifest.predicted.throughput
    assert throughput.mode == "pipeline"
    assert throughput.whole_frames_per_s is None
    assert throughput.frames_per_s > 0


def test_the_plan_stands_in_the_model_in_words_of_onnx():
    model = network()
    copy = partition_model(model, devices()).annotated
    onnx.checker.check_model(copy, full_check=True)
    assert copy.ir_version == 11
    (configuration,) = copy.configuration
    assert list(configuration.device) == ["d0", "d1"]
    layer = next(node for node in copy.graph.node if node.output[0] == "c1")
    (told,) = layer.device_configurations
    result, *_ = told.sharding_spec
    assert (result.tensor_name, list(result.device), result.sharded_dim[0].axis) == ("c1", [0, 1], 1)
    assert result.sharded_dim[0].simple_sharding[0].num_shards == 2
    assert {prop.key: prop.value for prop in layer.metadata_props}["edgeprune.channels"] == "d0 0:32; d1 32:64"
    x = np.ones((1, 3, 32, 32), np.float32)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    with OrtRunner(model) as whole:
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], whole.run({"x": x})["y"])


def test_a_device_waits_for_no_stage_without_need():
    """What is not sent is computed while tensors are on their way: an exchange costs less than all that lies between."""
    manifest = partition_model(network(), devices()).manifest
    predicted = manifest.predicted
    busy = max(entry.busy_ms for entry in manifest.devices)
    moved = sum(span.end_ms - span.start_ms for span in predicted.timeline if span.kind == "transfer")
    assert busy <= predicted.latency_ms <= busy + moved + 0.2
