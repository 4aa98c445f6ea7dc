"""The sampler of LFPC (paper 004, 6.3.2.3): for each unit of filters, a distribution over criteria, one over rates.

A criterion and a rate make one pruned version of a unit: the n filters with the highest scores stay. The paper adds up
the outputs of the pruned versions, each channel in its own place, weighted by probability (6.11). Every channel that is
there is the same in all versions, so that the sum is the whole layer's output times one number a channel:

    O[c] = sum_s p_s [c is kept by s] * O_whole[c]

The filters of all units stand one after another in one vector of "places".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeprune.methods.shared.units import Numbers


class CriteriaSampler(nn.Module):
    """Parameters and samples of the two distributions of each of U units, of S criteria and R rates."""

    unit_of: Tensor
    counts: Tensor
    ranks: Tensor

    def __init__(self, sizes: Sequence[int], counts: Tensor, criteria: int) -> None:
        """`sizes`: filters of each unit; `counts` (U, R): how many of them each rate keeps."""
        super().__init__()
        self.criteria = nn.Parameter(torch.zeros(len(sizes), criteria))
        """(U, S): alpha of (6.8)."""
        self.rates = nn.Parameter(torch.zeros(len(sizes), counts.shape[1]))
        """(U, R): the same for the rates."""
        self.sizes = list(sizes)
        self.register_buffer("unit_of", torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), False)
        self.register_buffer("counts", counts, False)
        self.register_buffer("ranks", torch.zeros(criteria, sum(sizes), dtype=torch.long), False)

    def rank(self, scores: Sequence[Tensor]) -> None:
        """Let each criterion order the filters anew by `scores`, (S, size) a unit; of equal scores the first wins."""
        orders = [each.argsort(dim=1, descending=True, stable=True) for each in scores]
        self.ranks = torch.cat([order.argsort(dim=1) for order in orders], dim=1)  # (S, places)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """(places,) what each filter's output is multiplied by, with probabilities drawn by (6.9); differentiable."""
        return self.aligned(
            gumbel_softmax(self.criteria, temperature, generator), gumbel_softmax(self.rates, temperature, generator)
        )

    def aligned(self, criteria: Tensor, rates: Tensor) -> Tensor:
        """(places,) the sum of (6.11) over all versions, for the probabilities (U, S) and (U, R)."""
        counts = self.counts[self.unit_of].T  # (R, places)
        kept = self.ranks[:, None, :] < counts[None]  # (S, R, places)
        probability = criteria[self.unit_of].T[:, None, :] * rates[self.unit_of].T[None]  # (S, R, places)
        return (probability * kept).sum((0, 1))

    def expected_counts(self) -> Tensor:
        """(U,) how many filters each unit keeps on average; differentiable."""
        return (self.rates.softmax(1) * self.counts).sum(1)

    def probabilities(self) -> Tensor:
        """(U, S) of the criteria (6.8)."""
        return self.criteria.detach().softmax(1)

    def entropy(self) -> float:
        """Mean over the units of the criteria's entropy, as a share of the most that it can be."""
        if self.criteria.shape[1] == 1:
            return 0.0
        each = torch.special.entr(self.probabilities()).sum(1) / torch.tensor(float(self.criteria.shape[1])).log()
        return float(each.mean())

    def chosen(self, counts: Sequence[int]) -> tuple[Numbers, ...]:
        """A unit each, the filters that its most probable criterion keeps if it keeps that many, ascending."""
        best = self.probabilities().argmax(1)
        ranks = torch.split(self.ranks, self.sizes, dim=1)
        return tuple(
            tuple(torch.nonzero(rank[criterion] < count).flatten().tolist())
            for rank, criterion, count in zip(ranks, best, counts, strict=True)
        )

    def as_mask(self, choice: Sequence[Numbers]) -> Tensor:
        """(places,) 1 for a filter that is kept, 0 for another."""
        masks = zip(self.sizes, choice, strict=True)
        return torch.cat([torch.zeros(size).index_fill(0, torch.tensor(kept), 1.0) for size, kept in masks])

    def from_mask(self, mask: Tensor) -> tuple[Numbers, ...]:
        """A unit each, the filters that `as_mask` gave a 1."""
        return tuple(tuple(torch.nonzero(part).flatten().tolist()) for part in torch.split(mask, self.sizes))


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """(U, S) -> (U, S): a sample of (6.9) a row. -log of an exponential variate is the o = -log(-log(u)) there."""
    noise = -torch.empty_like(logits, requires_grad=False).exponential_(generator=generator).log()
    return ((logits.log_softmax(1) + noise) / temperature).softmax(1)
