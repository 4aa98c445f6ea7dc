import io

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from edgeprune.errors import InputError
from edgeprune.onnx_files.macs import count_macs


def network(inputs, body, **shapes):
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g ({inputs}) => (float[m] y) {{ {body} }}')
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    return model


@pytest.mark.parametrize(
    ("inputs", "body", "shapes", "macs", "params"),
    [
        # 2-D: N * C_out * H_out * W_out * C_in/groups * k * k
        (
            "float[b,8,10,12] x",
            "y = Conv<pads=[1,1,1,1]>(x, w, c)",
            {"w": (16, 8, 3, 3), "c": (16,)},
            16 * 120 * 72,
            1168,
        ),
        ("float[b,8,10,12] x", "y = Conv<strides=[2,2]>(x, w)", {"w": (16, 8, 1, 1)}, 16 * 30 * 8, 128),
        ("float[b,8,9,9] x", "y = Conv<group=4>(x, w)", {"w": (16, 2, 3, 3)}, 16 * 49 * 18, 288),
        ("float[b,8,9,9] x", "y = Conv<group=8>(x, w)", {"w": (8, 1, 3, 3)}, 8 * 49 * 9, 72),
        ("float[b,8,20] x", "y = Conv<group=2>(x, w)", {"w": (4, 4, 5)}, 4 * 16 * 20, 80),
        # transposed: N * C_in * H_in * W_in * C_out/groups * k * k
        ("float[b,8,5,5] x", "y = ConvTranspose<group=2>(x, w)", {"w": (8, 3, 2, 2)}, 8 * 25 * 12, 96),
        ("float[b,7] x", "y = Gemm<transB=1>(x, w, c)", {"w": (5, 7), "c": (5,)}, 35, 40),
        ("float[7,b] x", "y = Gemm<transA=1>(x, w)", {"w": (7, 5)}, 35, 35),
        ("float[b,3,7] x", "y = MatMul(x, w)", {"w": (7, 5)}, 105, 35),
        ("float[b,4,3,7] x, float[b,4,7,2] z", "y = MatMul(x, z)", {}, 4 * 3 * 7 * 2, 0),
        ("float[b,7] x", "t = Transpose(w) y = MatMul(x, t)", {"w": (5, 7)}, 35, 35),
    ],
)
def test_one_layer_has_its_closed_form_count(inputs, body, shapes, macs, params):
    if inputs.startswith("float[7"):
        inputs = inputs.replace("b]", "1]")
        batches = {7: 1}
    else:
        batches = {1: 1, 3: 3}
    for batch, factor in batches.items():
        count = count_macs(network(inputs, body, **shapes), batch=batch)
        assert count.total == macs * factor
        assert count.params == params
        assert not count.unsupported


def test_ignored_and_unsupported_operations_are_results():
    model = network(
        "float[b,8,4,4] x",
        'a = Conv(x, w) r = Relu(a) s = Relu(r) e = Einsum<equation="bchw->bc">(s) y = Add(e, c)',
        w=(6, 8, 1, 1),
        c=(6,),
    )
    count = count_macs(model)
    assert count.ignored == {"Relu": 2, "Add": 1}
    assert count.unsupported == {"Einsum": 1}
    assert [(node.op_type, node.macs, node.params, node.weight_name) for node in count.per_node] == [
        ("Conv", 6 * 16 * 8, 48, "w"),
        ("Add", 0, 6, "c"),
    ]


def test_another_domains_operation_is_unsupported_whatever_its_name():
    model = network("float[b,8,4,4] x", "a = own.Relu(x) y = Conv(x, w)", w=(6, 8, 1, 1))
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    count = count_macs(model)
    assert (count.total, count.unsupported) == (6 * 16 * 8, {"own.Relu": 1})


def test_a_shared_weight_counts_once_in_the_total():
    count = count_macs(network("float[b,8,4,4] x", "a = Conv(x, w) y = Conv(a, w)", w=(8, 8, 1, 1)))
    assert count.params == 64
    assert [node.params for node in count.per_node] == [64, 64]


def test_batch_norm_has_two_parameters_a_channel_and_no_macs():
    model = network("float[b,8,4,4] x", "y = BatchNormalization(x, s, o, m, v)", s=(8,), o=(8,), m=(8,), v=(8,))
    count = count_macs(model)
    assert (count.total, count.params) == (0, 16)


def test_a_shape_that_cannot_be_inferred_is_an_error():
    model = network("float[b,8,4,4] x, int64[4] target", "t = Reshape(x, target) y = Conv(t, w)", w=(8, 8, 1, 1))
    with pytest.raises(InputError, match="shape of 't' cannot be inferred"):
        count_macs(model)


def test_resnet18_agrees_with_the_counter_of_torch():
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    network = models.resnet18(weights=None).eval()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.normal_(norm.bias)  # a bias of zeros would be left out of the file
    example = torch.zeros(2, 3, 64, 64)
    with flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    file = io.BytesIO()
    program.save(file)
    count = count_macs(onnx.load_model_from_string(file.getvalue()), batch=2)
    assert count.total == counter.get_total_flops() // 2
    assert count.unsupported == {}
    # The exporter folds each BatchNorm into its convolution: 2 parameters a channel become one bias.
    assert count.params == sum(p.numel() for p in network.parameters()) - sum(norm.num_features for norm in norms)
