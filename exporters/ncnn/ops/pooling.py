"""Windows of which the largest value or the mean is taken.

ncnn's pad mode 1 ("valid") uses the padding that it is given and drops what is left at the end; mode 0 ("full") adds
padding until everything is covered, also where the window would begin behind the input, which ONNX leaves out. So
mode 1 is written always, with the padding that ONNX's rounding up needs at the end.
"""

from __future__ import annotations

from edgeprune.exporters.ncnn.layers import Layer, Value
from edgeprune.exporters.ncnn.node import Node
from edgeprune.exporters.ncnn.ops.windows import AXES, Two, Window, window

MAX, MEAN = 0, 1
VALID = 1


def max_pool(node: Node) -> list[Layer]:
    """MaxPool, without its second output."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise node.refused("its second output, the places of the largest values, is not known to ncnn")
    shape = window(node, tuple(node.attribute("kernel_shape")))
    return [node.layer("Pooling", _params(node, shape, MAX, _rest(node, shape)))]


def average_pool(node: Node) -> list[Layer]:
    """AveragePool. Where padding counts, what rounding up adds behind it does not: then padding is a layer of its
    own."""
    shape = window(node, tuple(node.attribute("kernel_shape")))
    rest = _rest(node, shape)
    if not node.attribute("count_include_pad", 0):
        return [node.layer("Pooling", _params(node, shape, MEAN, rest))]
    if rest == (0, 0):
        return [node.layer("Pooling", _params(node, shape, MEAN, rest) | {6: 1})]
    padded = f"{node.output}_padded"
    sides = {0: shape.before[0], 1: shape.after[0], 2: shape.before[1], 3: shape.after[1]}
    bare = Window(shape.kernel, shape.stride, shape.dilation, (0, 0), (0, 0))
    return [
        Layer("Padding", f"{node.name}_padding", node.inputs[:1], (padded,), sides),
        Layer("Pooling", node.name, (padded,), (node.output,), _params(node, bare, MEAN, rest)),
    ]


def global_average_pool(node: Node) -> list[Layer]:
    return _global(node, MEAN)


def global_max_pool(node: Node) -> list[Layer]:
    return _global(node, MAX)


def _global(node: Node, kind: int) -> list[Layer]:
    if len(node.blob(node.inputs[0])) != AXES + 1:
        raise node.refused("its input is no image")
    return global_pool(node, kind)


def global_pool(node: Node, kind: int) -> list[Layer]:
    """Over the whole height and width, which ncnn drops: where the output has them, they come back."""
    channels = node.blob(node.inputs[0])[0]
    if len(node.blob(node.output)) == 1:
        return [node.layer("Pooling", {0: kind, 4: 1})]
    flat = f"{node.output}_flat"
    return [
        Layer("Pooling", node.name, node.inputs[:1], (flat,), {0: kind, 4: 1}),
        Layer("Reshape", f"{node.name}_shape", (flat,), (node.output,), {0: 1, 1: 1, 2: channels}),
    ]


def _rest(node: Node, shape: Window) -> Two:
    """Rows and columns that rounding up adds behind the padding. Refused for dilated windows."""
    if shape.dilation != (1, 1):
        raise node.refused("its windows have holes (dilations)")
    sizes, wanted = node.blob(node.inputs[0])[1:], node.blob(node.output)[1:]
    rest = []
    for axis in range(AXES):
        kernel, step, first = shape.kernel[axis], shape.stride[axis], shape.before[axis]
        padded = sizes[axis] + first + shape.after[axis]
        count = (padded - kernel) // step + 1
        if node.attribute("ceil_mode", 0) and (padded - kernel) % step:
            count += 1
            if (count - 1) * step >= sizes[axis] + first:  # a window has to begin on the input, or in front of it
                count -= 1
        if count != wanted[axis]:
            raise node.refused(f"it makes {wanted[axis]} windows of {padded} places, where {count} fit")
        rest.append(max((count - 1) * step + kernel - padded, 0))
    return rest[0], rest[1]


def _params(node: Node, shape: Window, kind: int, rest: Two) -> dict[int, Value]:
    after = (shape.after[0] + rest[0], shape.after[1] + rest[1])
    return {
        0: kind, 1: shape.kernel[1], 11: shape.kernel[0], 2: shape.stride[1], 12: shape.stride[0],
        3: shape.before[1], 13: shape.before[0], 14: after[1], 15: after[0], 5: VALID,
    }  # fmt: skip
