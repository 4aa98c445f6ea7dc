"""GroupedConv2d: a pruned convolution that stands in the place of the dense one, channel for channel.

It takes and gives channels in the original order, so it can be trained like the layer it replaces and keeps that
layer's key names (`weight`, `bias`). The two index_selects that this costs are composed, moved and cancelled by `fold`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.plans.plan import LayerPlan


class GroupedConv2d(nn.Conv2d):
    """A dense grouped convolution with the channel selections of one `LayerPlan`.

    `weight` has shape (C_out, kept, k, k), filters in the plan's order, group after group.
    """

    input_index: Tensor
    output_index: Tensor
    kernel_index: Tensor

    def __init__(self, dense: nn.Conv2d, entry: LayerPlan) -> None:
        """An uninitialised grouped convolution in the place of `dense`; `rewrite` fills in the weights."""
        super().__init__(
            entry.groups * entry.kept,
            dense.out_channels,
            dense.kernel_size,  # type: ignore[arg-type]
            dense.stride,  # type: ignore[arg-type]
            dense.padding,  # type: ignore[arg-type]
            dense.dilation,  # type: ignore[arg-type]
            groups=entry.groups,
            bias=dense.bias is not None,
            padding_mode=dense.padding_mode,
            device=dense.weight.device,
            dtype=dense.weight.dtype,
        )
        self.entry = entry
        # What it takes, as a forward may check; how many of them each group reads, the weight's shape says.
        self.in_channels = dense.in_channels
        self.reads = entry.reads(dense.in_channels)
        self.writes = entry.writes()
        # Not in the state dict: the plan holds them, and the keys stay those of the checkpoint.
        self.register_buffer("input_index", torch.from_numpy(self.reads.array()), persistent=False)
        self.register_buffer("output_index", torch.from_numpy(self.writes.inverse().array()), persistent=False)
        filters, inputs = torch.tensor(entry.filters), torch.tensor(entry.inputs)  # (groups, own), (groups, kept)
        kernels = filters[:, :, None] * dense.in_channels + inputs[:, None, :]
        self.register_buffer("kernel_index", kernels.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W'), both in the original channel order.

        In training the same sums are computed by a dense convolution with zeros: the gradients reach the same weights,
        and torch's kernels for narrow groups are many times slower than what the zeros cost.
        """
        if self.training and self.padding_mode == "zeros":
            weight, bias = self.masked_dense()
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)
        if not self.reads.is_identity:
            x = x.index_select(1, self.input_index)  # (N, groups * kept, H, W)
        y = super().forward(x)
        return y if self.writes.is_identity else y.index_select(1, self.output_index)

    def gathers(self) -> int:
        """Gathers that this layer needs on its own: its input's and its output's, where they move anything."""
        return int(not self.reads.is_identity) + int(not self.writes.is_identity)

    def plain_conv(self, weight: Tensor, bias: Tensor | None, *, groups: int) -> nn.Conv2d:
        """An ordinary convolution of this layer's geometry with a weight of shape (C_out, C_in / groups, k, k)."""
        with torch.device("meta"):  # its own weights are never used
            conv = nn.Conv2d(
                weight.shape[1] * groups,
                weight.shape[0],
                self.kernel_size,  # type: ignore[arg-type]
                self.stride,  # type: ignore[arg-type]
                self.padding,  # type: ignore[arg-type]
                self.dilation,  # type: ignore[arg-type]
                groups=groups,
                bias=bias is not None,
                padding_mode=self.padding_mode,
            )
        dtype = self.weight.dtype
        conv.weight = nn.Parameter(weight.to(dtype).contiguous())
        conv.bias = None if bias is None else nn.Parameter(bias.to(dtype).contiguous())
        return conv.train(self.training)

    @torch.no_grad()
    def load_dense(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take the kept kernels out of the dense layer's weight (C_out, C_in, k, k)."""
        self.weight.copy_(weight.flatten(0, 1)[self.kernel_index].view_as(self.weight))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias[self.writes.array()])

    def masked_dense(self) -> tuple[Tensor, Tensor | None]:
        """The same layer as a dense weight (C_out, C_in, k, k) with zeros at the pruned kernels, and its bias."""
        kernels = self.weight.reshape(-1, *self.kernel_size)  # (C_out * kept, k, k)
        zeros = kernels.new_zeros(self.out_channels * self.in_channels, *self.kernel_size)
        weight = zeros.index_copy(0, self.kernel_index, kernels)
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        return weight.reshape(shape), None if self.bias is None else self.bias[self.output_index]
