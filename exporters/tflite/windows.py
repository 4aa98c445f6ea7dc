"""Windows that slide over an image: where ONNX pads, what LiteRT's two ways of padding do, and what is left to do.

LiteRT knows VALID (no padding) and SAME: as many windows as strides fit in, with the padding split in halves and the
odd one behind. ONNX says how much is in front and behind. A window's place depends on the padding in front and on the
number of windows alone: what ONNX pads behind the last window is never read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Windows along one axis."""

    size: int
    """Of the input."""
    windows: int
    """How many there are: the size of the output."""
    kernel: int
    stride: int
    dilation: int
    before: int
    """Padding in front, in elements."""

    @property
    def reach(self) -> int:
        """Elements from a window's first to its last, both included."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def after(self) -> int:
        """Padding behind the image that the last window reads; at least 0."""
        return max((self.windows - 1) * self.stride + self.reach - self.size - self.before, 0)

    @property
    def is_valid(self) -> bool:
        """Whether VALID has these windows."""
        fitting = (self.size - self.reach) // self.stride + 1
        return self.before == 0 and self.size >= self.reach and self.windows == fitting

    @property
    def is_same(self) -> bool:
        """Whether SAME has these windows."""
        windows = -(-self.size // self.stride)
        total = max((windows - 1) * self.stride + self.reach - self.size, 0)
        return self.windows == windows and self.before == total // 2


def padding_of(axes: tuple[Axis, ...]) -> str | None:
    """`VALID` or `SAME` where LiteRT's way of padding is ONNX's on all axes; None where it has to be padded before."""
    if all(axis.is_valid for axis in axes):
        return "VALID"
    return "SAME" if all(axis.is_same for axis in axes) else None


def pads_of_auto(auto_pad: str, size: int, kernel_reach: int, stride: int) -> tuple[int, int]:
    """ONNX's `auto_pad` along one axis, in elements before and behind."""
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + kernel_reach - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)
