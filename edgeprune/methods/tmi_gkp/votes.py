"""Tickets vote for a clustering scheme: TMI-GKP's equations (3.1) to (3.4).

Clusters do not depend on a ticket, only scores do: a layer is clustered once, and all tickets score it together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.methods.base import Ticket, Weights
from edgeprune.methods.shared.clustering import Clusters

Weight = NDArray[np.floating[Any]]


def filter_tmi(final: Weight, tickets: Sequence[Weight]) -> NDArray[np.float64]:
    """(3.1): (tickets, filters), each filter's sum of | |w_t| - |w_k| | over its weights.

    `final` and each ticket: (filters, ...).
    """
    size = np.abs(final)
    rows = [np.abs(size - np.abs(ticket)).reshape(len(final), -1).sum(axis=1, dtype=np.float64) for ticket in tickets]
    return np.stack(rows)


def clustering_scores(tmi: NDArray[np.float64], clusterings: Sequence[Clusters], alpha: float) -> NDArray[np.float64]:
    """(3.4): (tickets, clusterings), rank of the mean interval + alpha * rank of the intervals' variance; low is good.

    `tmi`: (tickets, filters); each clustering has the same number of groups, 2 or more. (3.2) sums a group's TMI; the
    intervals (3.3) lie between groups next to each other when sorted by it; their variance is taken over all n - 1 of
    them. Ranks are 1 for the smallest, and equal values share the lowest rank of their places.
    """
    members = np.array(clusterings, dtype=np.int64)  # (clusterings, groups, size)
    group_tmi = np.sort(tmi[:, members].sum(axis=-1), axis=-1)[..., ::-1]  # (tickets, clusterings, groups), descending
    intervals = group_tmi[..., :-1] - group_tmi[..., 1:]
    return np.asarray(_ranks(intervals.mean(axis=-1)) + alpha * _ranks(intervals.var(axis=-1)))


def count_votes(scores: NDArray[np.float64]) -> list[int]:
    """For how many tickets each clustering has the lowest score; of equals the first clustering has the vote."""
    return [int((scores.argmin(axis=1) == number).sum()) for number in range(scores.shape[1])]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """(tickets, clusterings) -> ranks along the clusterings."""
    return np.asarray(1 + (values[:, None, :] < values[:, :, None]).sum(axis=-1))


def tickets_in_window(tickets: Sequence[Ticket], window: str, step: int) -> tuple[Ticket, ...]:
    """Every `step`-th of the tickets whose epoch lies in "FIRST:LAST" (both included), by epoch; "" takes all."""
    ordered = sorted(tickets, key=lambda ticket: ticket.epoch)
    first, last = _parse_window(window)
    held = [t for t in ordered if (first is None or t.epoch >= first) and (last is None or t.epoch <= last)]
    if ordered and not held:
        raise InputError(
            f"ticket_window {window!r} leaves none of the {len(ordered)} tickets",
            expected=f"a window that holds some of the epochs {_listed([t.epoch for t in ordered])}",
        )
    return tuple(held[::step])


def _parse_window(window: str) -> tuple[int | None, int | None]:
    if not window.strip():
        return None, None
    first, colon, last = (part.strip() for part in window.partition(":"))
    if colon and all(not part or part.isdecimal() for part in (first, last)):
        bounds = (int(first) if first else None, int(last) if last else None)
        if None in bounds or bounds[0] <= bounds[1]:  # type: ignore[operator]
            return bounds
    raise InputError(f"ticket_window {window!r} is no window", expected='"FIRST:LAST" epochs, such as 35:70')


def check_tickets(tickets: Sequence[Ticket], final: Weights, layers: Sequence[Layer]) -> tuple[tuple[Ticket, ...], str]:
    """The tickets that say something, and a sentence for the user about those that do not (or "").

    InputError if a ticket lacks one of the layers, holds it in another shape or with NaN or infinite values, or if
    every ticket equals the final weights.
    """
    for ticket in tickets:
        for layer in layers:
            _check_ticket_layer(ticket, layer.name, final[layer.name])
    is_same = [all(np.array_equal(t.weights[layer.name], final[layer.name]) for layer in layers) for t in tickets]
    same = [ticket for ticket, equal in zip(tickets, is_same, strict=True) if equal]
    earlier = tuple(ticket for ticket, equal in zip(tickets, is_same, strict=True) if not equal)
    if tickets and not earlier:
        raise InputError(
            f"the tickets hold the final epoch only: {_listed([t.source for t in same])} equal the network's weights",
            expected="weights saved at earlier epochs of the same training run",
            remedy="give tickets of earlier epochs, or none (--set scheme=spectral then says which clustering to use)",
        )
    if not same:
        return earlier, ""
    return earlier, f"Tickets that equal the final weights have no vote: {_listed([t.source for t in same])}."


def _check_ticket_layer(ticket: Ticket, layer: str, final: Weight) -> None:
    held = ticket.weights.get(layer)
    if held is None or held.shape != final.shape:
        got = "has no weight for" if held is None else f"has shape {tuple(held.shape)} in"
        raise InputError(
            f"the ticket {got} layer {layer}",
            where=ticket.source,
            expected=f"shape {tuple(final.shape)}, as in the network that is pruned",
            remedy="tickets must come from the same training run as the checkpoint",
        )
    if not np.isfinite(held).all():
        raise InputError(
            f"the ticket holds NaN or infinite weights in layer {layer}",
            where=ticket.source,
            expected="a checkpoint of the training run",
            remedy="leave this epoch out",
        )


def _listed(values: Sequence[object]) -> str:
    """At most five values, the last one always."""
    if len(values) > 5:
        values = [*values[:4], "...", values[-1]]
    return ", ".join(str(value) for value in values)
