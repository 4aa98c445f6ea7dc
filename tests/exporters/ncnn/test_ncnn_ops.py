"""Every operation that is written for ncnn, in ncnn, beside ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper
from runtimes.small_onnx import ncnn_difference, normal, small_model

pytest.importorskip("ncnn", reason="ncnn is not installed: pip install 'edgeprune[ncnn]'")

from edgeprune.exporters.ncnn.ops.table import ENTRIES

CLOSE = 1e-5


def one(op: str, shape: tuple[int, ...], *constants: Any, opset: int = 20, **attributes: Any) -> ModelProto:
    """A model of one node, whose further inputs are constants; None leaves one out."""
    names = ["" if values is None else f"c{place}" for place, values in enumerate(constants)]
    held = {name: values for name, values in zip(names, constants, strict=True) if name}
    return small_model([helper.make_node(op, ["x", *names], ["y"], **attributes)], shape, held, opset=opset)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(normal(*shape)) + 0.5


def cases(c: int) -> dict[str, ModelProto]:
    """Models by what they are of, on `c` channels: ncnn has kernels of their own for 16, 8, 4 and 1 at a time."""
    image, g = (1, c, 9, 11), 4 if c % 4 == 0 else 2
    return {
        "Conv": one("Conv", image, normal(12, c, 3, 3), normal(12), pads=[1, 0, 2, 1], strides=[2, 1]),
        "Conv without bias": one("Conv", image, normal(5, c, 1, 1)),
        "Conv in groups": one("Conv", image, normal(12, c // g, 3, 3), normal(12), group=g, pads=[1] * 4),
        "Conv in groups, dilated": one("Conv", image, normal(8, c // 2, 3, 2), group=2, dilations=[2, 1]),
        "Conv depthwise": one("Conv", image, normal(c, 1, 3, 3), normal(c), group=c, pads=[1] * 4, strides=[2, 2]),
        "Conv depthwise, twice the filters": one("Conv", image, normal(2 * c, 1, 3, 3), group=c),
        "Conv with SAME_UPPER": one("Conv", image, normal(4, c, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
        "Conv with SAME_LOWER": one("Conv", image, normal(4, c, 4, 2), auto_pad="SAME_LOWER"),
        "Conv with VALID": one("Conv", image, normal(4, c, 4, 2), auto_pad="VALID"),
        "ConvTranspose": one("ConvTranspose", image, normal(c, 5, 3, 2), normal(5), strides=[2, 3], pads=[1, 0, 0, 1]),
        "ConvTranspose, more rows": one(
            "ConvTranspose", image, normal(c, 5, 3, 3), strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]
        ),
        "ConvTranspose, one more row": one(
            "ConvTranspose", image, normal(c, 5, 3, 3), strides=[2, 3], output_padding=[1, 0], dilations=[2, 1]
        ),
        "ConvTranspose in groups": one(
            "ConvTranspose", image, normal(c, 3, 2, 2), normal(3 * g), group=g, strides=[2, 2]
        ),
        "ConvTranspose depthwise": one(
            "ConvTranspose", image, normal(c, 1, 4, 4), group=c, strides=[2, 2], pads=[1] * 4
        ),
        "ConvTranspose to a shape": one(
            "ConvTranspose", image, normal(c, 3, 4, 4), strides=[2, 2], output_shape=[18, 21]
        ),
        "ConvTranspose with SAME": one(
            "ConvTranspose", image, normal(c, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"
        ),
        "Gemm": one("Gemm", (1, 20), normal(7, 20), normal(7), transB=1),
        "Gemm, scaled": one("Gemm", (1, 20), normal(20, 7), normal(1, 7), alpha=0.5, beta=2.0),
        "Gemm without biases": one("Gemm", (1, 20), normal(20, 7)),
        "MatMul of a row": one("MatMul", (1, 20), normal(20, 7)),
        "MatMul of images with channels last": one("MatMul", (1, 5, 6, 20), normal(20, 7)),
        "MatMul of rows": one("MatMul", (1, 6, 20), normal(20, 7)),
        "MaxPool": one("MaxPool", image, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        "MaxPool rounding up": one("MaxPool", image, kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1),
        "MaxPool rounding up, padded": one(
            "MaxPool", image, kernel_shape=[3, 3], strides=[3, 2], pads=[1] * 4, ceil_mode=1
        ),
        "MaxPool with SAME_UPPER": one("MaxPool", image, kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        "AveragePool": one("AveragePool", image, kernel_shape=[3, 3], strides=[2, 1], pads=[1] * 4),
        "AveragePool, padding counts": one(
            "AveragePool", image, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1], count_include_pad=1
        ),
        "AveragePool rounding up": one("AveragePool", image, kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1),
        "AveragePool rounding up, padding counts": one(
            "AveragePool",
            image,
            kernel_shape=[3, 3],
            strides=[3, 2],
            pads=[1, 0, 1, 0],
            ceil_mode=1,
            count_include_pad=1,
        ),
        "GlobalAveragePool": one("GlobalAveragePool", image),
        "GlobalMaxPool": one("GlobalMaxPool", image),
        "BatchNormalization": one("BatchNormalization", image, normal(c), normal(c), normal(c), positive(c)),
        "BatchNormalization of a row": one("BatchNormalization", (1, c), normal(c), normal(c), normal(c), positive(c)),
        "BatchNormalization of rows": one(
            "BatchNormalization", (1, c, 5), normal(c), normal(c), normal(c), positive(c)
        ),
        "InstanceNormalization": one("InstanceNormalization", image, normal(c), normal(c)),
        "LayerNormalization": one("LayerNormalization", image, normal(11), normal(11)),
        "LayerNormalization of rows": one("LayerNormalization", (1, 6, 16), normal(16), epsilon=1e-3),
        "LayerNormalization of a row": one("LayerNormalization", (1, 16), normal(16), normal(16)),
        "LayerNormalization of two axes": one("LayerNormalization", image, normal(9, 11), normal(9, 11), axis=2),
        "LRN": one("LRN", image, size=5, alpha=0.2, beta=0.6, bias=1.5),
        "Softmax of channels": one("Softmax", image, axis=1),
        "Softmax of columns": one("Softmax", image),
        "Softmax of rows": one("Softmax", image, axis=2),
        "Softmax of classes": one("Softmax", (1, 10), axis=1),
        "Softmax of classes, opset 11": one("Softmax", (1, 10), opset=11),
        "Relu": one("Relu", image),
        "LeakyRelu": one("LeakyRelu", image, alpha=0.3),
        "PRelu": one("PRelu", image, normal(c, 1, 1)),
        "PRelu with one slope": one("PRelu", image, normal(1)),
        "PRelu of a row": one("PRelu", (1, c), normal(c)),
        "Clip": one("Clip", image, f(0), f(6)),
        "Clip from above": one("Clip", image, None, f(0.5)),
        "Clip, opset 6": one("Clip", image, opset=6, min=-0.5, max=0.7),
        "Sigmoid": one("Sigmoid", image),
        "HardSigmoid": one("HardSigmoid", image, alpha=1 / 6),
        "HardSigmoid by default": one("HardSigmoid", image),
        "HardSwish": one("HardSwish", image),
        "Tanh": one("Tanh", image),
        "Elu": one("Elu", image, alpha=0.7),
        "Selu": one("Selu", image),
        "Softplus": one("Softplus", image),
        "Mish": one("Mish", image),
        "Erf": one("Erf", image),
        "Gelu": one("Gelu", image),
        "Gelu by tanh": one("Gelu", image, approximate="tanh"),
        **{
            op: one(op, image)
            for op in ("Abs", "Neg", "Floor", "Ceil", "Exp", "Sin", "Cos", "Atan", "Round", "Reciprocal")
        },
        **{
            op: small_model([helper.make_node("Abs", ["x"], ["a"]), helper.make_node(op, ["a"], ["y"])], image)
            for op in ("Sqrt", "Log")
        },
        **{
            op: small_model([helper.make_node("Tanh", ["x"], ["a"]), helper.make_node(op, ["a"], ["y"])], image)
            for op in ("Tan", "Asin", "Acos")
        },
        **{
            op: small_model(
                [helper.make_node("Exp", ["x"], ["a"]), helper.make_node(op, ["a", "z"], ["y"])],
                image,
                more_inputs={"z": image},
            )
            for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")
        },
        "Pow": small_model(
            [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Pow", ["a", "c"], ["y"])], image, {"c": f(1.5)}
        ),
        "Add of three": small_model([helper.make_node("Sum", ["x", "x", "c"], ["y"])], image, {"c": normal(c, 1, 1)}),
        "Concat": small_model(
            [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Concat", ["x", "a", "c"], ["y"], axis=1)],
            image,
            {"c": normal(1, 2, 9, 11)},
        ),
        "Concat of columns": small_model([helper.make_node("Concat", ["x", "x"], ["y"], axis=-1)], image),
        "Split": small_model(
            [
                helper.make_node("Split", ["x", "s"], ["a", "b"], axis=1),
                helper.make_node("Concat", ["b", "a"], ["y"], axis=1),
            ],
            image,
            {"s": ints(3, c - 3)},
        ),
        "Split evenly": small_model(
            [
                helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
                helper.make_node("Sub", ["b", "a"], ["y"]),
            ],
            image,
        ),
        "Slice": one("Slice", image, ints(2, 1), ints(7, -1), ints(1, 3)),
        "Slice of rows to the end": one("Slice", image, ints(-4), ints(2**31 - 1), ints(2)),
        "Slice of every second row and third column": one(
            "Slice", image, ints(1, 0), ints(9, 11), ints(2, 3), ints(2, 3)
        ),
        "Slice of every second row": one("Slice", image, ints(0), ints(100), ints(-2), ints(2)),
        "Slice, opset 9": one("Slice", image, opset=9, starts=[1], ends=[4], axes=[1]),
        "Gather of a part": one("Gather", image, ints(1, 2, 3), axis=1),
        "Gather of everything": one("Gather", image, ints(*range(c)), axis=1),
        "Gather that shuffles": one("Gather", image, np.arange(c).reshape(2, c // 2).T.reshape(-1), axis=1),
        **{
            f"Transpose {order}": one("Transpose", image, perm=[0, *order])
            for order in ((1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (1, 2, 3))
        },
        "Transpose of rows": one("Transpose", (1, 5, 7), perm=[0, 2, 1]),
        "Reshape": one("Reshape", image, ints(1, c // 2, 18, 11)),
        "Reshape to rows": one("Reshape", image, ints(0, c, -1)),
        "Reshape to four axes": one("Reshape", image, ints(1, 2, c // 2, 9, 11)),
        "Flatten": one("Flatten", image),
        "Squeeze": one("Squeeze", (1, c, 1, 5), ints(2)),
        "Unsqueeze": one("Unsqueeze", (1, c, 5), ints(2)),
        "Pad": one("Pad", image, ints(0, 0, 1, 2, 0, 0, 0, 3), f(0.5)),
        "Pad of channels": one("Pad", image, ints(0, 1, 0, 0, 0, 2, 0, 0)),
        "Pad by the edge": one("Pad", image, ints(0, 0, 1, 2, 0, 0, 2, 3), mode="edge"),
        "Pad by reflection": one("Pad", image, ints(0, 0, 1, 2, 0, 0, 2, 3), mode="reflect"),
        "DepthToSpace": one("DepthToSpace", (1, 4 * c, 9, 11), blocksize=2),
        "DepthToSpace of torch": one("DepthToSpace", (1, 4 * c, 9, 11), blocksize=2, mode="CRD"),
        "SpaceToDepth": one("SpaceToDepth", (1, c, 8, 6), blocksize=2),
        "Resize nearest": one(
            "Resize",
            image,
            None,
            np.array([1, 1, 2, 3], np.float32),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        "Resize nearest by default": one("Resize", image, None, np.array([1, 1, 2, 4], np.float32)),
        "Resize linear": one("Resize", image, None, None, ints(1, c, 20, 13), mode="linear"),
        "Resize linear of torch": one(
            "Resize",
            image,
            None,
            None,
            ints(1, c, 18, 22),
            mode="linear",
            coordinate_transformation_mode="pytorch_half_pixel",
        ),
        "Resize linear by corners": one(
            "Resize",
            image,
            None,
            None,
            ints(1, c, 17, 21),
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
        "Resize linear, smaller": one("Resize", image, None, None, ints(1, c, 5, 7), mode="linear"),
        "Resize linear of one pixel": one("Resize", (1, c, 1, 1), None, None, ints(1, c, 3, 5), mode="linear"),
        "Upsample": one("Upsample", image, np.array([1, 1, 2, 2], np.float32), opset=9),
        "Identity": one("Identity", image),
        "Dropout": one("Dropout", image),
        "Cast": one("Cast", image, to=1),
        **{
            f"{op} {axes} {keep}": one(op, image, ints(*axes), keepdims=keep, opset=18)
            for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
            for axes in ((2, 3), (1,), (3,), (2,), (1, 2, 3), (1, 3))
            for keep in (0, 1)
            if keep or len(axes) < 3
        },
        **{
            op: one(op, image, ints(1), opset=18)
            for op in ("ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare", "ReduceLogSumExp")
        },
        "ReduceLogSum": small_model(
            [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("ReduceLogSum", ["a", "c"], ["y"])],
            image,
            {"c": ints(1)},
            opset=18,
        ),
        "ReduceMean, opset 13": one("ReduceMean", image, opset=13, axes=[2, 3]),
        "ReduceSum of rows": one("ReduceSum", (1, 6, 5), ints(-1), opset=18, keepdims=0),
    }


CHANNELS = (16, 8, 4, 6)
CASES = {f"{what}, {c} channels": model for c in CHANNELS for what, model in cases(c).items()}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_computes_what_it_does_in_onnxruntime(case: str, tmp_path: Path) -> None:
    assert ncnn_difference(CASES[case], tmp_path) <= CLOSE


def test_every_operation_is_tried() -> None:
    tried = {node.op_type for model in CASES.values() for node in model.graph.node}
    assert tried == set(ENTRIES)
