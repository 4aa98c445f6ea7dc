"""Least squares behind the activation: where ReLU gives zero in the dense network, anything below zero will do.

Squared errors of what the activation gives are bounded from above by squared errors of what it reads, with a target
that moves along where it hides the difference; so each round is a least-squares problem with the same moments of what
the layer reads, and Nesterov's momentum (as in Beck and Teboulle's FISTA, 2009) makes few rounds do. After X. Zhang et
al., Accelerating Very Deep Convolutional Networks (2016), section 3.2, where a penalty does what the bound does here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_weight

from edgeprune.methods.on_images import Moments, Refitted
from edgeprune.methods.shared.reconstruction import DAMPING, held_by
from edgeprune.modules.norms import NORMS
from edgeprune.pruning.moments import moments as moments_of

ROUNDS = 6
ENOUGH = 256
"""Places for each column of the least squares: of more, some are looked at. The error is then larger by one part in so
many."""
SMALLEST_GAIN = 1e-2
"""Channels that BatchNorm makes smaller than so are not asked to make up for anything."""
Solve = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Limits = tuple[float, float]
"""What an activation gives at least and at most, and between them what it reads."""


@dataclass(frozen=True)
class Behind:
    """What lies between a convolution and its activation."""

    scale: Tensor
    """(1, filters, 1, 1) that BatchNorm multiplies with."""
    shift: Tensor
    """(1, filters, 1, 1) that it adds."""
    stream: Sequence[Tensor] | None
    """Batches of what is then added, as it is by now; None for nothing."""
    limits: Limits


def inverse_of(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for channels that are hardly there."""
    return torch.where(scale.abs() > SMALLEST_GAIN, 1 / scale, torch.zeros(()))


@torch.no_grad()
def affine_of(norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """What a BatchNorm with statistics multiplies with and adds, (1, C, 1, 1) each: ones and zeros without one, and
    None for a norm of another kind."""
    if norm is None:
        return torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    if not isinstance(norm, NORMS) or norm.running_var is None or norm.running_mean is None:
        return None
    scale = 1 / torch.sqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else norm.bias + shift
    return scale.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)


def limits_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Limits | None:
    """What an activation's outputs are clamped to; None where the node is not one that clamps."""
    target: object = modules.get(str(node.target)) if node.op == "call_module" else node.target
    if isinstance(target, nn.ReLU6) or target is F.relu6:
        return 0.0, 6.0
    if isinstance(target, nn.ReLU) or target in (F.relu, torch.relu, "relu"):
        return 0.0, math.inf
    return None


@torch.no_grad()
def fitted_behind(
    conv: nn.Conv2d, changed: Refitted, moments: Moments, read: Sequence[Tensor], wanted: Sequence[Tensor], how: Behind
) -> Refitted:
    """The layer with weights that are nearer to the dense network behind the activation; zeros stay zeros.

    `read`: batches (n, C_in, H, W); `wanted`: of what the convolution shall give, as far as nothing is hidden.
    """
    dense = conv.weight.detach().double().numpy().reshape(len(changed.weight), -1)
    some = _Places.enough(conv, moments.count, read, wanted, how)
    if some.are_fewer:
        moments = moments_of(conv, some.read, some.wanted, step=some.step)
    weights, shift = changed.weight.reshape(dense.shape), changed.shift
    solve = _Solver(moments, np.any(weights.reshape(*changed.weight.shape[:2], -1), axis=2), dense)
    weights_before, shift_before, momentum = weights, shift, 1.0
    ahead, shift_ahead = weights, shift
    for _ in range(ROUNDS):
        cross, mean = _moved(conv, ahead, shift_ahead, moments, some, how)
        weights = solve(cross)
        shift = np.where(weights.any(1), mean - weights @ moments.read, changed.shift)
        longer = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        further = (momentum - 1) / longer
        ahead, shift_ahead = weights + further * (weights - weights_before), shift + further * (shift - shift_before)
        weights_before, shift_before, momentum = weights, shift, longer
    return Refitted(weights.reshape(changed.weight.shape), shift)


def _moved(
    conv: nn.Conv2d,
    weights: NDArray[np.float64],
    shift: NDArray[np.float64],
    moments: Moments,
    some: _Places,
    how: Behind,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The cross moments (filters, columns) and the mean (filters,) of the target as these weights leave it: what is
    wanted, and how far from it hidden outputs may stay."""
    kernel = torch.from_numpy(weights).to(conv.weight).reshape(conv.weight.shape)
    bias = torch.from_numpy(shift).to(conv.weight)
    cross, sums = np.zeros(weights.shape), np.zeros(len(weights))
    low, high = how.limits
    stride = [some.step * each for each in conv.stride]
    for x, y, stream in zip(some.read, some.wanted, some.stream, strict=True):
        padded = _padded(conv, x)
        given = F.conv2d(padded, kernel, bias, stride, 0, conv.dilation)
        added = how.shift if stream is None else how.shift + stream
        have, aim = given * how.scale + added, y * how.scale + added
        hidden = torch.where(aim <= low, have.clamp(max=low), torch.where(aim >= high, have.clamp(min=high), aim))
        off = (hidden - aim) * inverse_of(how.scale)
        products = conv2d_weight(  # type: ignore[no-untyped-call]
            padded, kernel.shape, off.contiguous(), stride, 0, conv.dilation
        )
        cross += products.reshape(weights.shape).double().numpy()
        sums += off.double().sum((0, 2, 3)).numpy()
    cross, sums = cross / moments.count, sums / moments.count
    return moments.cross + cross - np.outer(sums, moments.read), moments.wanted + sums


@dataclass(frozen=True)
class _Places:
    """Some of the images and of the places in each, spread over all."""

    read: Sequence[Tensor]
    """Batches (n, C_in, H, W)."""
    wanted: Sequence[Tensor]
    """Batches (n, filters, H', W') of every `step`-th place in height and width alone."""
    stream: Sequence[Tensor | None]
    """The same of what is added."""
    step: int
    are_fewer: bool

    @staticmethod
    def enough(conv: nn.Conv2d, count: int, read: Sequence[Tensor], wanted: Sequence[Tensor], how: Behind) -> _Places:
        """Of `count` places in all, `ENOUGH` for each column."""
        stream: Sequence[Tensor | None] = how.stream or [None] * len(read)
        fewer = count / (ENOUGH * conv.weight[0].numel())
        if fewer <= 1:
            return _Places(read, wanted, stream, 1, are_fewer=False)
        step = math.isqrt(int(fewer))
        share = step**2 / fewer

        def some(batches: Sequence[Tensor | None], step: int = 1) -> list[Any]:
            kept = (None if b is None else b[: math.ceil(len(b) * share), :, ::step, ::step] for b in batches)
            return list(kept)

        return _Places(some(read), some(wanted, step), some(stream, step), step, are_fewer=True)


def _padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)


class _Solver:
    """Least squares for filters that read some channels each, held to the dense weights."""

    def __init__(self, moments: Moments, reads: NDArray[np.bool_], dense: NDArray[np.float64]) -> None:
        """`reads`: (filters, C_in)."""
        size = dense.shape[1] // reads.shape[1]
        self._held, self._dense = held_by(moments, DAMPING), dense
        self._parts: list[tuple[NDArray[np.intp], NDArray[np.intp], Solve]] = []
        patterns, which = np.unique(reads, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            columns = np.flatnonzero(np.repeat(pattern, size))
            if not len(columns):
                continue
            square = moments.covariance[np.ix_(columns, columns)] + self._held * np.eye(len(columns))
            factor = cho_factor(square, lower=True, overwrite_a=True)
            self._parts.append((np.flatnonzero(which.ravel() == number), columns, _solving(factor)))

    def __call__(self, cross: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = np.zeros_like(self._dense)
        for rows, columns, solve in self._parts:
            at = np.ix_(rows, columns)
            weights[at] = solve((cross[at] + self._held * self._dense[at]).T)
        return weights


def _solving(factor: tuple[NDArray[np.float64], bool]) -> Solve:
    return lambda right: np.asarray(cho_solve(factor, right).T)
