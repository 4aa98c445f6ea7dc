"""A selection of channels, or zeros in their place, as a module: where no layer's weights can absorb it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeprune.plans.permutation import Selection


class Gather(nn.Module):
    """y[:, i] = x[:, index[i]]: one ONNX Gather over axis 1."""

    index: Tensor

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        # Not in the state dict: the plan holds it, and the keys stay those of the checkpoint.
        self.register_buffer("index", torch.from_numpy(selection.array()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


class ChannelMask(nn.Module):
    """y[:, c] = x[:, c] for the kept channels, zero for the others."""

    mask: Tensor

    def __init__(self, kept: Sequence[int], channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        mask = torch.zeros(1, channels, 1, 1, dtype=dtype)
        mask[:, list(kept)] = 1
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def insert_zero_filled(
    module: fx.GraphModule, before: fx.Node, source: fx.Node, picked: Sequence[int | None], channels: int, name: str
) -> fx.Node:
    """A node whose channel i is channel picked[i] of `source` (which has `channels`), or zeros for None.

    It stands in front of `before`: plain zero padding where that is enough, else one zero channel and a Gather that is
    called `name`.
    """
    lead = next((i for i, position in enumerate(picked) if position is not None), len(picked))
    trail = len(picked) - lead - channels
    with module.graph.inserting_before(before):
        if trail >= 0 and tuple(picked) == (*(None,) * lead, *range(channels), *(None,) * trail):
            return module.graph.call_function(F.pad, (source, (0, 0, 0, 0, lead, trail)))
        if None not in picked:
            zero_added, count = source, channels
        else:
            zero_added, count = module.graph.call_function(F.pad, (source, (0, 0, 0, 0, 0, 1))), channels + 1
        index = tuple(channels if position is None else position for position in picked)
        module.add_submodule(name, Gather(Selection(index, count)))
        return module.graph.call_module(name, (zero_added,))
