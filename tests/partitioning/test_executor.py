import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from edgeprune.errors import InputError
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.devices import Device, load_devices
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.partitioning.partition import partition_model, write_partition
from edgeprune.runners.onnxruntime.runner import OrtRunner

HEAD = '<ir_version: 9, opset_import: ["" : 20]> g (float[batch,24,7,7] x) => (float[batch,c,h,k] y) '


def network(body, **shapes):
    """A model over x (batch, 24, 7, 7) with random constants; a list is an index."""
    model = parser.parse_model(HEAD + "{ " + body.replace("Conv3<", "Conv<pads=[1,1,1,1], ") + " }")
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = np.asarray(shape) if isinstance(shape, list) else rng.standard_normal(shape).astype(np.float32)
        if name == "var":
            values = np.abs(values) + 0.5
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def weights(name, groups, channels=24, out=24, kernel=3):
    return {name: (out, channels // groups, kernel, kernel)}


REVERSED = list(range(23, -1, -1))
NETWORKS = {
    "two groups": network("y = Conv3<group=2>(x, w)", **weights("w", 2)),
    "eight groups with a bias": network("y = Conv3<group=8>(x, w, b)", **weights("w", 8), b=(24,)),
    "six groups that grow": network("y = Conv3<group=6, strides=[2,2]>(x, w)", **weights("w", 6, out=48)),
    "depthwise": network("a = Conv3<group=24>(x, w) y = Relu(a)", **weights("w", 24)),
    "depthwise with two filters a channel": network("y = Conv3<group=24>(x, w)", **weights("w", 24, out=48)),
    "Gather in front": network("i = Gather<axis=1>(x, o) y = Conv3<group=4>(i, w)", o=REVERSED, **weights("w", 4)),
    "Gather that repeats channels": network(
        "i = Gather<axis=1>(x, o) y = Conv3<group=4>(i, w)",
        o=[0, -1, 5, 5, 3, 1, 0, 2] * 4,
        **weights("w", 4, channels=32),
    ),
    "residual adds": network(
        "a = Conv3<group=4>(x, w) r = Relu(a) c = Conv3<group=4>(r, u) s = Add(c, x) t = Relu(s) "
        "d = Conv3<group=4>(t, w) y = Add(d, t)",
        **weights("w", 4),
        **weights("u", 4),
    ),
    "BatchNorm behind": network(
        "a = Conv3<group=4>(x, w) n = BatchNormalization(a, s, b, m, var) y = LeakyRelu(n)",
        **weights("w", 4),
        s=(24,),
        b=(24,),
        m=(24,),
        var=(24,),
    ),
    "constants a channel, a value, and a map": network(
        "a = Conv3<group=4>(x, w) e = Mul(p, a) f = Add(e, q) g1 = Sub(f, k) y = Add(z, g1)",
        **weights("w", 4),
        p=(24, 1, 1),
        q=(1, 24, 1, 1),
        k=(1,),
        z=(7, 7),
    ),
    "SiLU": network("a = Conv3<group=4>(x, w) s = Sigmoid(a) y = Mul(s, a)", **weights("w", 4)),
    "concat": network(
        "a = Conv3<group=2>(x, w) j = Concat<axis=1>(a, x) y = Conv3<group=8>(j, u)",
        **weights("w", 2),
        **weights("u", 8, channels=48),
    ),
    "parallel branches of unequal depth": network(
        "a = Conv3<group=4>(x, w) r = Relu(a) m = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(r) d = Conv(m, v) "
        "c = Conv3<group=8>(d, u) e = Conv3<group=6>(x, t) y = Add(c, e)",
        **weights("w", 4),
        **weights("u", 8),
        **weights("t", 6),
        **weights("v", 1, kernel=1),
    ),
    "a result that is read twice": network(
        "a = Conv3<group=4>(x, w) r = Relu(a) c = Conv3<group=4>(a, w) y = Add(r, c)", **weights("w", 4)
    ),
    "shared weight": network(
        "a = Conv3<group=4>(x, w) s = Softmax<axis=1>(a) y = Conv3<group=4>(s, w)", **weights("w", 4)
    ),
    "a chain without exchange": network(
        "a = Conv3<group=8>(x, w) r = Relu(a) c = Conv3<group=24>(r, u) y = Conv3<group=8>(c, w)",
        **weights("w", 8),
        **weights("u", 24),
    ),
    "pooling to one value a channel": network(
        "a = Conv3<group=4>(x, w) p = GlobalAveragePool(a) y = Conv(p, v)",
        **weights("w", 4),
        **weights("v", 1, kernel=1),
    ),
    "a constant as a node": network(
        "i = Constant<value = int64[24] {ORDER}>() j = Gather<axis=1>(x, i) y = Conv3<group=4>(j, w)".replace(
            "ORDER", ",".join(map(str, REVERSED))
        ),
        **weights("w", 4),
    ),
    "an If that reads outer values": parser.parse_model(
        HEAD
        + """
        <float[24,6,1,1] w = {W}, bool yes = {1}> {
          a = Conv<group=4>(x, w)
          y = If (yes) <
            then_branch = one () => (float[batch,24,7,7] t) { t = Add(a, x) },
            else_branch = two () => (float[batch,24,7,7] f) { f = Sub(a, x) }>
        }""".replace("W", ",".join(str(i % 7 - 3.0) for i in range(144)))
    ),
}


def assert_equals_the_unsplit_model(model, devices, folder, batch=2):
    """Outputs of the split network are those of the model to 1e-5 of their range; returns the executor's cost."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    model = load_model(folder / "model.onnx")
    x = np.random.default_rng(1).standard_normal((batch, 24, 7, 7)).astype(np.float32)
    with OrtRunner(model) as runner:
        expected = runner.run({"x": x})
    partition = partition_model(model, devices)
    write_partition(partition, folder)
    with LocalExecutor(folder) as executor:
        assert (executor.input_names, executor.output_names) == (("x",), runner.output_names)
        found = executor.run({"x": x})
        stats = executor.last_run
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert np.abs(found[name] - value).max() <= 1e-5 * np.ptp(value)
    assert stats.transferred_bytes == batch * partition.manifest.predicted.bytes_per_inference
    return stats


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_split_network_computes_what_the_whole_one_does(model, devices, tmp_path):
    assert_equals_the_unsplit_model(model, load_devices(devices), tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chain_of_grouped_convolutions_over_any_devices(data, tmp_path):
    count = data.draw(st.integers(1, 4))
    body, value, shapes = "", "x", {}
    for layer in range(count):
        groups = data.draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]))
        shapes |= weights(f"w{layer}", groups)
        if data.draw(st.booleans()):
            shapes[f"o{layer}"] = data.draw(st.permutations(range(24)))
            body += f"i{layer} = Gather<axis=1>({value}, o{layer}) "
            value = f"i{layer}"
        result = f"a{layer}"
        body += f"{result} = Conv3<group={groups}>({value}, w{layer}) "
        if data.draw(st.booleans()):
            body += f"r{layer} = Relu({result}) "
            result = f"r{layer}"
        if data.draw(st.booleans()):
            body += f"s{layer} = Add({result}, x) "
            result = f"s{layer}"
        value = result
    shapes |= weights("last", 4)
    shares = data.draw(st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
    devices = [Device(f"d{number}", share=share) for number, share in enumerate(shares)]
    assert_equals_the_unsplit_model(network(f"{body} y = Conv3<group=4>({value}, last)", **shapes), devices, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '<ir_version: 9, opset_import: ["" : 20]> g (float[batch,4,9] x) => (float[batch,4,k] y) <float[4,2,3] w = {W}> '
        "{ a = Conv<group=2>(x, w) y = Relu(a) }",
        '<ir_version: 9, opset_import: ["" : 20]> g (float[3,4,9] x) => (float[3,36] y) <float[4,2,3] w = {W}> '
        "{ a = Conv<group=2, pads=[1,1]>(x, w) y = Flatten(a) }",
        # Initializers listed as inputs, as old exporters did, and an old opset.
        '<ir_version: 3, opset_import: ["" : 9]> g (float[batch,4,9] x, float[4,2,3] w) => (float[batch,4,k] y) '
        "<float[4,2,3] w = {W}> { y = Conv<group=2>(x, w) }",
        '<ir_version: 9, opset_import: ["" : 20]> g (float16[batch,4,9] x) => (float16[batch,4,k] y, float16[batch,4,9] z) '
        "<float16[4,2,3] w = {W}> { y = Conv<group=2>(x, w) z = Relu(x) }",
    ],
    ids=["one-dimensional", "fixed batch", "opset 9", "float16, two outputs"],
)
def test_other_kinds_of_models_split_too(text, tmp_path):
    dtype = np.float16 if "float16" in text else np.float32
    values = (np.arange(24) % 5 - 2.0).astype(dtype)
    numbers = values.view(np.uint16) if dtype is np.float16 else values  # ONNX text spells float16 by its bits
    model = parser.parse_model(text.replace("W", ",".join(map(str, numbers))))
    x = np.random.default_rng(0).standard_normal((3, 4, 9)).astype(dtype)
    with OrtRunner(model) as runner:
        expected = runner.run({"x": x})
    write_partition(partition_model(model, load_devices(2)), tmp_path)
    with LocalExecutor(tmp_path) as executor:
        found = executor.run({"x": x})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5 if dtype is np.float32 else 1e-2, atol=1e-5)


def test_what_each_device_did_is_measured(tmp_path):
    stats = assert_equals_the_unsplit_model(NETWORKS["residual adds"], load_devices(2), tmp_path)
    assert set(stats.device_ms) == {"device0", "device1"}
    assert all(milliseconds > 0 for milliseconds in stats.device_ms.values())
    assert sum(stats.stage_ms) <= stats.latency_ms
    assert stats.sent_bytes["device0"] == stats.sent_bytes["device1"] == stats.transferred_bytes > 0


def test_a_device_without_groups_has_nothing_to_do(tmp_path):
    stats = assert_equals_the_unsplit_model(NETWORKS["two groups"], load_devices(3), tmp_path)
    assert stats.device_ms["device2"] == stats.sent_bytes["device2"] == 0


@pytest.fixture
def folder(tmp_path):
    write_partition(partition_model(NETWORKS["two groups"], load_devices(2)), tmp_path)
    return tmp_path


def test_threads_and_cores_do_not_change_the_result(folder):
    x = np.ones((1, 24, 7, 7), np.float32)
    with LocalExecutor(folder) as executor:
        expected = executor.run({"x": x})["y"]
    core = min(os.sched_getaffinity(0))
    for options in ({"threads": 2}, {"cores": (core, core)}):
        with LocalExecutor(folder, **options) as executor:
            np.testing.assert_allclose(executor.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


def test_cores_must_match_the_devices(folder):
    for options in ({"cores": (0,)}, {"cores": (0, 0), "threads": 2}):
        with pytest.raises(InputError, match="one core and one thread for each device"):
            LocalExecutor(folder, **options)


def test_wrong_inputs_are_refused_before_anything_runs(folder):
    with LocalExecutor(folder) as executor:
        with pytest.raises(InputError, match=r"expected shape \(batch, 24, 7, 7\)"):
            executor.run({"x": np.ones((1, 23, 7, 7), np.float32)})
        with pytest.raises(InputError, match="input 'x' is missing"):
            executor.run({})
        with pytest.raises(ValueError, match="nothing has been run"):
            _ = executor.last_run


def test_a_closed_executor_refuses_to_run(folder):
    executor = LocalExecutor(folder)
    executor.close()
    executor.close()
    with pytest.raises(ValueError, match="closed"):
        executor.run({"x": np.ones((1, 24, 7, 7), np.float32)})


def test_a_partition_with_a_lost_transfer_is_refused(folder):
    path = folder / "partition.json"
    path.write_text(path.read_text().replace('"stage": 1', '"stage": 2', 1))
    with pytest.raises(InputError, match="cannot be run"):
        LocalExecutor(folder)


def test_nothing_that_runs_on_a_device_imports_the_libraries_of_the_workstation():
    modules = "onnx_files.macs, edgeprune.partitioning.executor, edgeprune.devices.device_profile, edgeprune.runners.onnxruntime.runner"
    heavy = "{'torch', 'scipy', 'sklearn', 'matplotlib', 'onnx_ir'}"
    code = f"import sys, edgeprune.{modules}; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("arch", ["mobilenet_v2"])
def test_a_network_of_torchvision_can_be_split(arch, tmp_path):
    torch = pytest.importorskip("torch")
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]  # of its seven stages, of which each takes time to export
    models = pytest.importorskip("torchvision.models")
    network = models.get_model(arch, weights=None, inverted_residual_setting=blocks).eval()
    example = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    program.save(tmp_path / "model.onnx")
    model = load_model(tmp_path / "model.onnx")
    with OrtRunner(model) as runner:
        name = runner.input_names[0]
        expected = next(iter(runner.run({name: example.numpy()}).values()))
    write_partition(partition_model(model, load_devices(3)), tmp_path)
    with LocalExecutor(tmp_path) as executor:
        found = next(iter(executor.run({name: example.numpy()}).values()))
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
