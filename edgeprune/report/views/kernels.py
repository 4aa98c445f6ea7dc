"""A layer's kernels before and after: norms |W[f, c]| in original order, and as blocks in the order of the groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import array
from edgeprune.plans.plan import LayerPlan, Plan

LARGEST = 256
"""Rows or columns at most that are shown; more are averaged in blocks."""
CLEAREST = 128
"""Filters or input channels at most of a layer that makes a clear picture."""


@dataclass(frozen=True)
class KernelView:
    """One layer. What holds no kernel is NaN."""

    entry: LayerPlan
    before: NDArray[np.float64]
    """(filters, input channels) in original order."""
    after: NDArray[np.float64]
    """(filters group after group, the channels that group 1 reads, then group 2's ...)."""

    @property
    def recovered(self) -> float:
        """Share of the layer's magnitude, the sum of all norms, that is kept."""
        return float(np.nansum(self.after) / self.before.sum()) if self.before.sum() else 0.0


def kernel_view(plan: Plan, dense: ModelProto) -> KernelView | None:
    """The grouped layer with the most kernels that still makes a clear picture, else the smallest; None without one.

    Norms are those of the dense model's weights, so that both sides show the same numbers.
    """
    weights = _weights(dense)
    fitting = []
    for name, entry in plan.grouped().items():
        weight = weights.get(name)
        if weight is not None and _fits(entry, weight.shape):
            fitting.append((entry, weight))
    if not fitting:
        return None
    clear = [pair for pair in fitting if max(pair[1].shape[:2]) <= CLEAREST]
    choose = max if clear else min
    entry, weight = choose(clear or fitting, key=lambda pair: pair[1].shape[0] * pair[1].shape[1])
    norms = kernel_norms(weight)
    return KernelView(entry, norms, block_diagonal(norms, entry))


def kernel_norms(weight: NDArray[np.generic]) -> NDArray[np.float64]:
    """(C_out, C_in) L2 norms of a weight (C_out, C_in, *k)."""
    flat = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    return np.asarray(np.sqrt((flat**2).sum(axis=2)))


def block_diagonal(norms: NDArray[np.float64], entry: LayerPlan) -> NDArray[np.float64]:
    """Norms (C_out, C_in) as the grouped convolution holds them: (C_out, groups * kept), NaN outside the blocks."""
    blocks = np.full((sum(map(len, entry.filters)), entry.groups * entry.kept), np.nan)
    row = 0
    for group, (filters, inputs) in enumerate(zip(entry.filters, entry.inputs, strict=True)):
        columns = slice(group * entry.kept, (group + 1) * entry.kept)
        blocks[row : row + len(filters), columns] = norms[np.ix_(filters, inputs)]
        row += len(filters)
    return blocks


def reduced(image: NDArray[np.float64], largest: int = LARGEST) -> NDArray[np.float64]:
    """The image averaged in blocks to at most `largest` rows and columns; a block without kernels stays NaN."""
    for axis in (0, 1):
        step = -(-image.shape[axis] // largest)
        if step > 1:
            starts = np.arange(0, image.shape[axis], step)
            present = np.add.reduceat((~np.isnan(image)).astype(float), starts, axis=axis)
            total = np.add.reduceat(np.nan_to_num(image), starts, axis=axis)
            image = np.where(present > 0, total / np.maximum(present, 1), np.nan)
    return image


def _weights(model: ModelProto) -> dict[str, NDArray[np.generic]]:
    held = constants(model)
    return {
        node.name: array(held[node.input[1]])
        for node in model.graph.node
        if node.op_type == "Conv" and len(node.input) > 1 and node.input[1] in held
    }


def _fits(entry: LayerPlan, shape: tuple[int, ...]) -> bool:
    """The plan and the file may not belong together: they are two files."""
    channels = [channel for group in entry.inputs for channel in group]
    filters = [number for group in entry.filters for number in group]
    return (
        len(shape) > 2
        and len(entry.filters) == len(entry.inputs)
        and len({len(group) for group in entry.inputs}) == 1
        and sorted(filters) == list(range(shape[0]))
        and all(0 <= channel < shape[1] for channel in channels)
    )
