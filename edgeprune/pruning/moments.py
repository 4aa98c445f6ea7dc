"""What a layer reads and what it shall give, summed up over images: all that least squares needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.methods.on_images import Moments

Fitted = nn.Conv2d | nn.Linear
COLUMN_BYTES = 256 * 2**20
"""Of the columns that are looked at together, about."""


def moments(module: Fitted, read: Sequence[Tensor], wanted: Sequence[Tensor], *, step: int = 1) -> Moments:
    """Streamed over batches: products in float32 about the first images' means, sums in float64.

    `read`: batches of what the layer, a convolution without groups or a linear one, reads; `wanted`: of what it shall
    give, at every `step`-th place in height and width alone. A linear layer's columns are its features, at each place
    of all axes but the last.
    """
    columns, filters = module.weight[0].numel(), len(module.weight)
    covariance, cross = np.zeros((columns, columns)), np.zeros((filters, columns))
    sums, outputs, count = np.zeros(columns), np.zeros(filters), 0
    centre: list[Tensor] = []
    for parts in _columns(module, read, wanted, step):
        centre = centre or [part.mean(1, keepdim=True) for part in parts]
        u, out = (part - mean for part, mean in zip(parts, centre, strict=True))
        covariance += (u @ u.T).double().numpy()
        cross += (out @ u.T).double().numpy()
        sums += u.double().sum(1).numpy()
        outputs += out.double().sum(1).numpy()
        count += u.shape[1]
    sums, outputs = sums / count, outputs / count
    first_read, first_wanted = (mean.double().numpy()[:, 0] for mean in centre)
    return Moments(
        covariance / count - np.outer(sums, sums),
        cross / count - np.outer(outputs, sums),
        first_read + sums,
        first_wanted + outputs,
        count,
    )


def _columns(
    module: Fitted, read: Sequence[Tensor], wanted: Sequence[Tensor], step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(columns, n) of what the layer reads at each place, and (filters, n) of what it shall give there."""
    for x, y in zip(read, wanted, strict=True):
        if isinstance(module, nn.Linear):
            yield x.flatten(0, -2).T, y.flatten(0, -2).T
            continue
        images = max(1, COLUMN_BYTES // (4 * module.weight[0].numel() * y[0, 0].numel()))
        for few, their in zip(torch.split(x, images), torch.split(y, images), strict=True):
            yield _unfolded(module, few, their.shape[2:], step), their.transpose(0, 1).flatten(1)


def _unfolded(conv: nn.Conv2d, x: Tensor, size: Sequence[int], step: int) -> Tensor:
    """(columns, n * positions): what is at each place of the kernel, row by row, as F.unfold gives in several times
    the time."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode).transpose(0, 1)  # (C, n, H, W)
    (height, width), (down, right), strides = conv.kernel_size, conv.dilation, conv.stride
    rows, columns = (step * stride for stride in strides)
    found = x.new_empty(x.shape[1], height * width, len(x), *size)
    for number in range(height * width):
        top, left = number // width * down, number % width * right
        found[:, number] = padded[
            :, :, top : top + rows * (size[0] - 1) + 1 : rows, left : left + columns * (size[1] - 1) + 1 : columns
        ]
    return found.flatten(0, 1).flatten(1)
