"""Closed-form weights for layers whose structure is decided: what is left of each gives what the dense layer gave.

Least squares on calibration images, each layer on what it reads in the network pruned so far (`OnImages.refit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.graph import Graph, Layer
from edgeprune.methods.base import NormValues, Weights
from edgeprune.methods.on_images import Moments, Refitted
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.plan import Plan

DAMPING = 0.001
ENOUGH = 4
"""Columns for each unknown weight of a filter, from which on least squares hardly follows chance."""
ROUNDING = 1e-7
"""Of a product in float32, as a share of what is read."""
SMALLEST = 1e-12
LEAST_WEIGHT = 1e-3
"""Of a filter's error, as a share of the mean, where BatchNorm makes nothing of the filter."""
Part = tuple[Sequence[int], Sequence[int]]
"""Filters, and the input channels that they read."""


def can_refit(layer: Layer) -> str:
    """Why least squares cannot fit this layer anew; empty if it can."""
    if layer.refusal:
        return layer.refusal
    if layer.kind == "conv_transpose":
        return "a transposed convolution"
    return "in groups as it comes" if layer.groups > 1 else ""


def refittable_from(graph: Graph, first: str) -> list[str]:
    """The layers that can be fitted anew, from the first that changes on: those before it read what they did."""
    order = [layer.name for layer in graph.layers]
    return [name for name in order[order.index(first) :] if not can_refit(graph.layer(name))]


def held_by(moments: Moments, damping: float) -> float:
    """What holds the weights to the dense ones: `damping` of what is read, and more than rounding makes of zeros."""
    variance = float(np.trace(moments.covariance)) / len(moments.covariance)
    return max(damping * variance, ROUNDING * float(np.square(moments.read).mean()), SMALLEST)


def filter_gains(layer: Layer, norms: Mapping[str, NormValues]) -> NDArray[np.float64]:
    """(filters,) what BatchNorm multiplies each with, which its error counts by."""
    norm = norms.get(layer.norm)
    if norm is None:
        return np.ones(layer.out_channels)
    gain = np.abs(norm.weight.astype(np.float64)) / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    return gain + LEAST_WEIGHT * gain.mean() if gain.any() else np.ones(layer.out_channels)


def columns_a_channel(layer: Layer) -> int:
    """Weights of one filter for one input channel."""
    return math.prod(layer.kernel_size) * layer.features_per_channel


def refitted(layer: Layer, moments: Moments, matrix: NDArray[np.float64]) -> Refitted:
    """The layer with the weights (filters, columns), and the shift that restores the mean."""
    shift = moments.wanted - matrix @ moments.read
    shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return Refitted(matrix.reshape(len(matrix), -1) if layer.kind == "linear" else matrix.reshape(shape), shift)


@dataclass(frozen=True)
class Reconstruction:
    """The layers of a network in the structure that a plan gives them."""

    plan: Plan
    graph: Graph
    weights: Weights
    damping: float = DAMPING

    @property
    def names(self) -> list[str]:
        """The layers that are fitted anew: all that can be, behind and with the first that loses anything."""
        gone = self._kept.gone
        changed = [layer.name for layer in self.graph.layers if layer.name in gone or self._parts(layer) is not None]
        if not changed:
            return []
        return [name for name in refittable_from(self.graph, changed[0]) if name not in gone]

    def fits(self, layer: Layer, moments: Moments) -> bool:
        """Whether the weights are fitted; those of a layer that reads all stay, rather than follow chance."""
        return self._parts(layer) is not None or moments.count >= ENOUGH * len(moments.covariance)

    def __call__(self, layer: Layer, moments: Moments) -> Refitted:
        dense = self.weights[layer.name].reshape(layer.out_channels, -1).astype(np.float64)
        size, added = columns_a_channel(layer), held_by(moments, self.damping)
        if not self.fits(layer, moments):
            return refitted(layer, moments, dense)
        matrix = np.zeros_like(dense)
        for filters, inputs in self._parts(layer) or [(range(layer.out_channels), range(layer.in_channels))]:
            rows = np.asarray(filters)
            columns = (np.asarray(inputs)[:, None] * size + np.arange(size)).ravel()
            wanted = moments.cross[np.ix_(rows, columns)] + added * dense[np.ix_(rows, columns)]
            square = moments.covariance[np.ix_(columns, columns)] + added * np.eye(len(columns))
            matrix[np.ix_(rows, columns)] = np.linalg.solve(square, wanted.T).T
        return refitted(layer, moments, matrix)

    def _parts(self, layer: Layer) -> list[Part] | None:
        """What each filter reads; None where it reads all."""
        entry, kept = self.plan.grouped().get(layer.name), self._kept
        if entry is not None:
            return list(zip(entry.filters, entry.inputs, strict=True))
        inputs = kept.inputs(layer)
        return None if inputs.is_all or layer.groups > 1 else [(range(layer.out_channels), inputs.index)]

    @property
    def _kept(self) -> KeptChannels:
        return KeptChannels(self.plan, self.graph)
