"""Windows that slide over two axes: their sizes, and the padding that ONNX asks for, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.exporters.ncnn.node import Node

Two = tuple[int, int]
AXES = 2


@dataclass(frozen=True)
class Window:
    """Height first."""

    kernel: Two
    stride: Two
    dilation: Two
    before: Two
    """Padding on top and left."""
    after: Two
    """Padding at the bottom and right."""

    @property
    def extent(self) -> Two:
        """Rows and columns that a window spans."""
        high, wide = (d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return high, wide


def window(node: Node, kernel: tuple[int, ...]) -> Window:
    """The window of a node with this kernel over the two last axes of its input. Refused over other numbers of axes, or
    with negative padding."""
    sizes = node.blob(node.inputs[0])[1:]
    if len(kernel) != AXES or len(sizes) != AXES:
        raise node.refused(f"its windows slide over {len(kernel)} axes, not over height and width")
    stride, dilation = (_two(node, name) for name in ("strides", "dilations"))
    pads = node.attribute("pads") or [0] * 4
    plain = Window((kernel[0], kernel[1]), stride, dilation, (pads[0], pads[1]), (pads[2], pads[3]))
    padded = _auto_padded(node, plain, (sizes[0], sizes[1]))
    if min(*padded.before, *padded.after) < 0:
        raise node.refused(f"its padding {list(pads)} is negative")
    return padded


def _two(node: Node, name: str) -> Two:
    high, wide = node.attribute(name) or (1, 1)
    return high, wide


def _auto_padded(node: Node, plain: Window, sizes: Two) -> Window:
    """With the padding that `auto_pad` stands for."""
    mode = node.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return plain
    if mode == "VALID":
        return Window(plain.kernel, plain.stride, plain.dilation, (0, 0), (0, 0))
    # As many windows as strides fit, the last of them partial.
    needed = [
        max((-(-size // step) - 1) * step + extent - size, 0)
        for size, step, extent in zip(sizes, plain.stride, plain.extent, strict=True)
    ]
    less, more = tuple(total // 2 for total in needed), tuple(total - total // 2 for total in needed)
    before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
    return Window(plain.kernel, plain.stride, plain.dilation, (before[0], before[1]), (after[0], after[1]))
