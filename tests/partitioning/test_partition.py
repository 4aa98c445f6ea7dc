import json

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import InputError
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.partitioning.devices import Device, LinkRate, load_devices
from edgeprune.partitioning.partition import (
    check_partition,
    load_manifest,
    load_partition,
    partition_model,
    write_partition,
)


def network(body, outputs="float[batch,c,h,k] y", **constants):
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[batch,8,6,6] x) => ({outputs}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, value in constants.items():
        values = rng.random(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


@pytest.fixture
def model():
    """Dense, then a grouped convolution of permuted channels with its activation, then dense."""
    return network(
        "a = Conv(x, d) b = Gather<axis=1>(a, order) c = Conv<group=4, pads=[1,1,1,1]>(b, w, v) e = Relu(c) y = Conv(e, d)",
        d=(8, 8, 1, 1),
        order=np.array([7, 0, 3, 2, 1, 6, 5, 4]),
        w=(8, 2, 3, 3),
        v=(8,),
    )


@pytest.fixture
def partition(model):
    return partition_model(model, load_devices(2))


def operations(model):
    return [node.op_type for node in model.graph.node]


def layers_of(partition):
    """Per device, the operations that are no more than putting pieces together left out."""
    found = {}
    for entry in partition.manifest.devices:
        nodes = [node for file in entry.subgraphs for node in partition.models[file].graph.node]
        found[entry.name] = [n.op_type for n in nodes if n.op_type not in ("Gather", "Concat", "Identity")]
    return found


def test_the_stages_are_host_parallel_host(partition):
    manifest, models = partition.manifest, partition.models
    assert [(stage.kind, stage.layers) for stage in manifest.stages] == [
        ("host", ()),
        ("parallel", ("Conv_2",)),
        ("host", ()),
    ]
    assert manifest.devices[1].subgraphs == ("device1/stage_01.onnx",)
    assert operations(models["device0/stage_00.onnx"]) == ["Conv", "Gather"]
    assert operations(models["device0/stage_01.onnx"]) == ["Gather", "Conv", "Relu"]
    assert operations(models["device1/stage_01.onnx"]) == ["Gather", "Conv", "Relu"]
    assert operations(models["device0/stage_02.onnx"]) == ["Concat", "Conv"]


def test_a_device_is_sent_only_the_channels_that_it_reads_and_a_dynamic_batch_stays(partition):
    part = partition.models["device1/stage_01.onnx"]
    assert input_specs(part)[0].shape == ("batch", 4, 6, 6)
    assert output_specs(part)[0].shape == ("batch", 4, 6, 6)
    sent, returned = partition.manifest.transfers
    assert (sent.from_, sent.to, sent.stage, sent.bytes) == ("device0", "device1", 1, 4 * 36 * 4)
    assert (returned.from_, returned.to, returned.stage, returned.bytes) == ("device1", "device0", 2, 4 * 36 * 4)
    assert partition.manifest.predicted.bytes_per_inference == sent.bytes + returned.bytes


def test_work_weights_and_memory_add_up(model, partition):
    host, other = partition.manifest.devices
    grouped = 8 * 36 * 2 * 9
    assert other.macs == grouped // 2
    assert host.macs == grouped // 2 + 2 * 8 * 8 * 36
    index = 4 * 8
    assert other.weight_bytes == (4 * 2 * 9 + 4) * 4 + index
    assert other.peak_memory_bytes == other.weight_bytes + 2 * 4 * 36 * 4  # what a node reads, and what it writes


def test_every_subgraph_is_a_valid_model(partition):
    for part in partition.models.values():
        onnx.checker.check_model(part, full_check=True)
    assert check_partition(partition.manifest, partition.models) == []


def test_repeated_channels_are_sent_once():
    model = network(
        "b = Gather<axis=1>(x, o) y = Conv<group=2>(b, w)", o=np.array([0, 1, 0, 2, 2, 3, 3, 2]), w=(4, 4, 1, 1)
    )
    partition = partition_model(model, load_devices(2))
    assert [move.bytes for move in partition.manifest.transfers] == [2 * 36 * 4, 2 * 36 * 4]
    assert operations(partition.models["device1/stage_01.onnx"]) == ["Gather", "Conv"]


def test_a_device_that_reads_all_channels_is_sent_the_tensor_itself():
    order = np.array([*range(8), *range(7, -1, -1)])
    model = network("b = Gather<axis=-3>(x, o) y = Conv<group=2>(b, w)", o=order, w=(4, 8, 1, 1))
    assert partition_model(model, load_devices(2)).manifest.transfers[0].tensor == "x"


@pytest.mark.parametrize(
    ("body", "other"),
    [
        ("c = Conv<group=4>(x, w) y = BatchNormalization(c, s, s, s, s)", ["Conv", "BatchNormalization"]),
        ("c = Conv<group=4>(x, w) e = Clip(c, lo, hi) y = Mul(e, s3)", ["Conv", "Clip", "Mul"]),
        ("c = Conv<group=4>(x, w) e = Sigmoid(c) y = Mul(c, e)", ["Conv", "Sigmoid", "Mul"]),
        ("c = Conv<group=4>(x, w) e = MaxPool<kernel_shape=[2,2]>(c) y = PRelu(e, s3)", ["Conv", "MaxPool", "PRelu"]),
        ("c = Conv<group=4>(x, w) e = Relu(c) y = Conv<group=2>(e, u)", ["Conv", "Relu", "Conv"]),
        ("c = Conv<group=4>(x, w) e = Relu(c) y = Add(c, e)", ["Conv", "Relu", "Add"]),
        (
            "c = Conv<group=4>(x, w) e = Relu(c) d1 = Conv<group=4>(e, w) y = Add(d1, c)",
            ["Conv", "Relu", "Conv", "Add"],
        ),
        ("c = Conv<group=4>(x, w) e = Conv<group=2>(x, u) y = Sub(c, e)", ["Conv", "Conv", "Sub"]),
        ("c = Conv<group=4>(x, w) y = Softmax<axis=1>(c)", ["Conv"]),
    ],
)
def test_what_comes_between_grouped_layers_stays_where_they_are(body, other):
    model = network(
        body,
        w=(8, 2, 1, 1),
        u=(8, 4, 1, 1),
        s=(8,),
        s3=(8, 1, 1),
        lo=np.float32(0),
        hi=np.float32(1),
    )
    partition = partition_model(model, load_devices(2))
    assert layers_of(partition)["device1"] == other
    assert len(partition.manifest.transfers) == 2  # the input, and the result


def test_a_device_computes_no_groups_of_the_next_layer_that_lie_across_devices():
    model = network("c = Conv<group=8>(x, z) y = Conv<group=2>(c, u)", z=(8, 1, 1, 1), u=(8, 4, 1, 1))
    partition = partition_model(model, load_devices(4))
    parts = [ops.count("Conv") for ops in layers_of(partition).values()]
    assert sum(parts) >= 4


def test_a_convolution_with_fewer_groups_than_devices_leaves_some_idle():
    model = network("y = Conv<group=2>(x, u)", u=(8, 4, 1, 1))
    manifest = partition_model(model, load_devices(5)).manifest
    assert sum(bool(entry.subgraphs) for entry in manifest.devices) == 2


def test_faster_devices_get_more_groups():
    model = network("y = Conv<group=8>(x, z)", z=(160, 1, 1, 1))
    devices = [Device("a", load_profile("raspberry-pi-4")), Device("b", load_profile("raspberry-pi-5"))]
    macs = [entry.macs for entry in partition_model(model, devices).manifest.devices]
    assert macs[0] < macs[1]
    told = [Device("a", share=1.0), Device("b", share=3.0)]
    macs = [entry.macs for entry in partition_model(model, told).manifest.devices]
    assert macs == [2 * 20 * 36, 6 * 20 * 36]


def test_one_device_gets_the_whole_network_in_one_subgraph(model):
    partition = partition_model(model, load_devices(1))
    assert list(partition.models) == ["device0/stage_00.onnx"]
    assert partition.manifest.transfers == ()
    assert partition.manifest.predicted.speedup == pytest.approx(1.0)
    assert operations(partition.models["device0/stage_00.onnx"]) == operations(model)


def test_the_prediction_is_that_of_the_slowest_way():
    model = network("y = Conv<group=2>(x, u)", u=(8, 4, 1, 1))
    devices = [Device(name, load_profile("raspberry-pi-5"), link=LinkRate(100, 2.0)) for name in "ab"]
    predicted = partition_model(model, devices).manifest.predicted
    size = 2 * 4 * 36 * 4
    assert predicted.bytes_per_inference == size
    a_byte, a_message = devices[0].known_profile.exchange_seconds
    engines = 2 * (a_message + a_byte * size / 2) * 1e3  # there and back
    assert predicted.latency_ms == pytest.approx(2.0 + size * 8 / 100e3 + engines, abs=0.05)
    assert predicted.speedup == pytest.approx(predicted.single_device_ms / predicted.latency_ms, rel=1e-4, abs=1e-6)
    assert predicted.best_device == "a"
    assert [span.kind for span in predicted.critical_path[-4:]] == ["transfer", "compute", "transfer", "compute"]
    assert "not measured" in predicted.basis


def test_a_network_without_groups_is_divided_over_its_channels():
    model = network("c = Conv(x, d) e = Relu(c) y = Conv(e, d)", d=(8, 8, 1, 1))
    partition = partition_model(model, load_devices(2))
    assert all(ops.count("Conv") == 2 for ops in layers_of(partition).values())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("p = ReduceMean<keepdims=0>(x) n = Mul(u, p) y = Conv<group=2>(x, n)", "computes its own while it runs"),
        ("y = ConvTranspose<group=2>(x, u)", "'ConvTranspose_0' is ConvTranspose"),
        ("y = Relu(x)", "holds no layer of a kind that is divided"),
    ],
)
def test_a_network_that_cannot_be_divided_is_refused_with_the_reason(body, words):
    with pytest.raises(InputError, match=words):
        partition_model(network(body, d=(8, 8, 1, 1), u=(8, 4, 1, 1)), load_devices(2))


def test_nodes_need_no_names_of_their_own(model):
    for node in model.graph.node:
        node.name = "same"
    partition = partition_model(model, load_devices(2))
    for part in partition.models.values():
        names = [node.name for node in part.graph.node]
        assert len(set(names)) == len(names)
    assert sum(entry.macs for entry in partition.manifest.devices) >= 8 * 36 * 18 + 2 * 8 * 8 * 36


def test_the_input_model_is_not_changed(model):
    before = model.SerializeToString()
    partition_model(model, load_devices(3))
    assert model.SerializeToString() == before


def test_what_is_written_is_read_again_and_the_keys_are_those_that_scripts_read(partition, tmp_path):
    write_partition(partition, tmp_path / "out")
    again = load_partition(tmp_path / "out")
    assert again.manifest == partition.manifest
    assert {name: part.SerializeToString() for name, part in again.models.items()} == {
        name: part.SerializeToString() for name, part in partition.models.items()
    }
    data = json.loads((tmp_path / "out" / "partition.json").read_text())
    assert set(data) >= {"schema_version", "devices", "stages", "transfers", "predicted", "inputs", "outputs", "layers"}
    assert {"name", "profile", "subgraphs", "macs", "weight_bytes", "peak_memory_bytes"} <= set(data["devices"][0])
    assert set(data["transfers"][0]) == {"from", "to", "tensor", "bytes", "stage"}
    assert {"latency_ms", "speedup", "bytes_per_inference", "single_device_ms", "best_device", "critical_path"} <= set(
        data["predicted"]
    )
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 8, 6, 6]}]


def test_the_same_network_gives_the_same_files(model):
    one, two = (partition_model(model, load_devices(3)) for _ in range(2))
    assert one.manifest.to_json() == two.manifest.to_json()
    assert all(one.models[name] == two.models[name] for name in one.models)


def changed(manifest, **values):
    return msgspec.structs.replace(manifest, **values)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            lambda m: changed(m, transfers=m.transfers[1:]),
            "device1: device1/stage_01.onnx reads the tensor 'a@device1'",
        ),
        (
            lambda m: changed(m, transfers=(changed(m.transfers[0], tensor="nil"), m.transfers[1])),
            "device0: lacks the tensor 'nil'",
        ),
        (lambda m: changed(m, transfers=(changed(m.transfers[0], to="moon"), m.transfers[1])), "moon: the tensor"),
        (
            lambda m: changed(m, transfers=(changed(m.transfers[0], stage=7), m.transfers[1])),
            "stage 7, which does not exist",
        ),
        (lambda m: changed(m, stages=m.stages[:-1]), "is run by 0 stages"),
        (lambda m: changed(m, stages=m.stages[::-1]), "not numbered"),
        (
            lambda m: changed(
                m, stages=(*m.stages[:2], changed(m.stages[2], subgraphs={"device1": "device0/stage_02.onnx"}))
            ),
            "not among this device's subgraphs",
        ),
        (lambda m: changed(m, devices=(m.devices[0], m.devices[0])), "listed twice"),
        (lambda m: changed(m, inputs=()), "device0: device0/stage_00.onnx reads the tensor 'x'"),
        (
            lambda m: changed(m, inputs=(changed(m.inputs[0], shape=("batch", 9, 6, 6)),)),
            "but it is float32 ('batch', 9, 6, 6)",
        ),
        (lambda m: changed(m, outputs=(changed(m.outputs[0], name="z"),)), "the output 'z' is never made"),
    ],
)
def test_faults_are_sentences_that_name_device_and_tensor(partition, fault, sentence):
    faults = check_partition(fault(partition.manifest), partition.models)
    assert any(sentence in found for found in faults)
    assert all(found.endswith(".") for found in faults)


def test_a_missing_model_is_a_fault(partition):
    models = {name: part for name, part in partition.models.items() if "device1" not in name}
    assert check_partition(partition.manifest, models) == ["device1: the subgraph device1/stage_01.onnx is missing."]


@pytest.mark.parametrize(
    "name", ["../evil.onnx", "/etc/passwd", "device1/../../evil.onnx", "a\\..\\b.onnx", "link.onnx", "", "a\0b"]
)
def test_a_manifest_that_names_files_elsewhere_is_refused(partition, tmp_path, name):
    folder = tmp_path / "out"
    write_partition(partition, folder)
    (tmp_path / "evil.onnx").write_bytes(b"")
    (folder / "link.onnx").symlink_to(tmp_path / "evil.onnx")
    text = (folder / "partition.json").read_text()
    (folder / "partition.json").write_text(text.replace('"device1/stage_01.onnx"', json.dumps(name)))
    with pytest.raises(InputError, match="subgraph"):
        load_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["devices"].__setitem__(1, data["devices"][1] | {"name": "../up"}),
        lambda data: data.__setitem__("devices", []),
        lambda data: data.__setitem__("schema_version", 99),
        lambda data: data.pop("stages"),
        lambda data: data.__setitem__("extra", 1),
        lambda data: data["transfers"][0].__setitem__("bytes", "many"),
    ],
)
def test_a_changed_manifest_is_refused(partition, tmp_path, change):
    write_partition(partition, tmp_path)
    data = json.loads((tmp_path / "partition.json").read_text())
    change(data)
    (tmp_path / "partition.json").write_text(json.dumps(data))
    with pytest.raises(InputError) as error:
        load_manifest(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "partition.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="is no partition"):
        load_manifest(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="no split network"):
            load_partition(folder)
