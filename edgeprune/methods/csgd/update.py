"""The update of C-SGD (paper 001, eqs. 6 and 8-10): filters of a cluster learn the same and draw together.

For a parameter W (filters, ...) with gradient g, where the filters j of a cluster H are to become one:

    g_j <- mean of g over H  +  decay * W_j  +  epsilon * (W_j - mean of W over H)

As matrices, with Gamma[j, k] = 1 / |H| where j and k are in one cluster H and 0 elsewhere (9), and
Lambda = (decay + epsilon) I - epsilon Gamma (10):

    g <- Gamma g + Lambda W = Gamma (g - epsilon W) + (decay + epsilon) W                                            (8)

It is applied to the gradients, before the optimizer's step, so that learning rate schedules, momentum and Nesterov's
form of it compose. Usable without the rest of edgeprune, on any model and training loop:

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    clusters = (0, 0, 1, 2)  # of four filters the first two become one
    rows = [ClusteredRows(tensor, clusters) for tensor in (model.conv.weight, model.bn.weight, model.bn.bias)]
    update = CentripetalUpdate(optimizer, rows, epsilon=3e-3)
    optimizer.register_step_pre_hook(lambda *_: update.apply())  # from now on every step is one of C-SGD

How fast a cluster draws together: the averaged gradients of its filters are equal, so the distance d of two of them
changes by its own pull alone, whatever the loss does. Without momentum d is multiplied by 1 - lr (epsilon + decay) at
each step, and the deviation (7) by the square of that (paper 001, theorem 2). With momentum mu the distance follows
v <- mu v + (epsilon + decay) d, d <- d - lr v (Nesterov: d <- d - lr ((epsilon + decay) d + mu v)), still the same for
all filters and independent of the loss: about 1 - lr (epsilon + decay) / (1 - mu) a step while lr (epsilon + decay) is
below (1 - sqrt(mu))^2, and a decaying oscillation above, which is no longer monotone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DECAY = "centripetal_decay"
"""The option in which a parameter group keeps the weight decay that the update applies in the optimizer's place."""


@dataclass(frozen=True)
class ClusteredRows:
    """A tensor whose first axis belongs to filters, and the cluster of each filter."""

    tensor: Tensor
    """(filters, ...), or (filters * features,) where each filter has several consecutive entries."""
    clusters: tuple[int, ...]
    """The number of each filter's cluster: equal numbers, one cluster."""

    @property
    def rows(self) -> Tensor:
        """(filters, entries of a filter)."""
        return self.tensor.detach().reshape(len(self.clusters), -1)

    def deviation(self) -> float:
        """Sum of the squared distances of the filters to the mean of their cluster (7)."""
        rows = self.rows.double()
        return float((rows - averaging_matrix(self.clusters, rows) @ rows).square().sum())

    @torch.no_grad()
    def collapse(self) -> None:
        """Set every filter to the mean of its cluster, the same to the last bit."""
        rows = self.rows.double()
        first = [self.clusters.index(number) for number in self.clusters]
        self.tensor.copy_((averaging_matrix(self.clusters, rows) @ rows)[first].view(self.tensor.shape))


def averaging_matrix(clusters: Sequence[int], like: Tensor) -> Tensor:
    """Gamma (9), (filters, filters), on the device and in the precision of `like`."""
    numbers = torch.tensor(clusters)
    together = numbers[:, None] == numbers[None, :]
    return (together.double() / together.sum(1, keepdim=True)).to(like)


@dataclass(frozen=True)
class _Batch:
    """Parameters of one shape and weight decay: one batched product does for all of them."""

    parameters: tuple[Tensor, ...]
    averaging: Tensor
    """(parameters, filters, filters)."""
    decay: float

    @torch.no_grad()
    def apply(self, epsilon: float) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        weights, pulled = self._stacked(self.parameters), self._stacked(gradients)
        pulled.sub_(weights, alpha=epsilon)
        new = torch.baddbmm(weights, self.averaging, pulled, beta=self.decay + epsilon)
        torch._foreach_copy_(gradients, list(new.view(-1, *self.parameters[0].shape).unbind()))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """(parameters, filters, entries of a filter), a copy."""
        filters = self.averaging.shape[-1]
        return torch.stack([tensor.detach().contiguous() for tensor in tensors]).view(len(tensors), filters, -1)


class CentripetalUpdate:
    """Turns the steps of `torch.optim.SGD` into steps of C-SGD for the given parameters.

    They are moved to parameter groups without weight decay, since (6) holds it already; all other options of their
    groups stay, and the other parameters are trained as before. A parameter without a gradient counts as one whose
    gradient is zero; a tensor that is not the optimizer's is left alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clustered: Iterable[ClusteredRows], epsilon: float) -> None:
        self.epsilon = epsilon
        """The centripetal strength; it may be changed between steps."""
        clusters_of = {id(rows.tensor): rows.clusters for rows in clustered}
        alike: dict[tuple[Any, ...], list[Tensor]] = {}
        for group in list(optimizer.param_groups):
            mine = [p for p in group["params"] if id(p) in clusters_of]
            decay = group.get(DECAY, group["weight_decay"])
            for p in mine:
                key = (decay, len(clusters_of[id(p)]), p.shape, p.dtype, p.device)
                alike.setdefault(key, []).append(p)
            if mine and DECAY not in group:
                group["params"] = [p for p in group["params"] if id(p) not in clusters_of]
                options = {name: value for name, value in group.items() if name != "params"}
                optimizer.add_param_group({**options, "params": mine, "weight_decay": 0.0, DECAY: decay})
        self._batches = [
            _Batch(tuple(members), torch.stack([averaging_matrix(clusters_of[id(p)], p) for p in members]), key[0])
            for key, members in alike.items()
        ]

    def apply(self) -> None:
        """Replace the gradients by those of (8): call it between `backward` and the optimizer's step."""
        for batch in self._batches:
            batch.apply(self.epsilon)
