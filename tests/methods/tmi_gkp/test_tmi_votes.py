"""Equations (3.1) to (3.4) against plain loops, and which tickets are asked."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.methods.base import Ticket
from edgeprune.methods.tmi_gkp.votes import check_tickets, clustering_scores, count_votes, filter_tmi, tickets_in_window

LAYER = Layer("conv", "conv", 2, 4, (3, 3), 1, 16, "a", "b")
FINAL = {"conv": np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)}
EPOCHS = [Ticket(epoch, f"epoch_{epoch}.pt", {}) for epoch in (50, 35, 45, 40)]


def epochs(tickets: tuple[Ticket, ...]) -> list[int]:
    return [ticket.epoch for ticket in tickets]


def test_tmi_of_filters_equals_the_sum_over_weights() -> None:
    tickets = [0.5 * FINAL["conv"], -FINAL["conv"], FINAL["conv"] + 1.0]
    tmi = filter_tmi(FINAL["conv"], tickets)
    assert tmi.shape == (3, 4)
    for k, ticket in enumerate(tickets):
        for f in range(4):
            expected = sum(
                abs(abs(float(a)) - abs(float(b)))
                for a, b in zip(FINAL["conv"][f].ravel(), ticket[f].ravel(), strict=True)
            )
            assert tmi[k, f] == pytest.approx(expected, rel=1e-5)
    assert not tmi[1].any()  # signs do not count


def test_scores_rank_mean_and_variance_of_the_intervals() -> None:
    tmi = np.array([[0.0, 1.0, 2.0, 4.0, 8.0, 16.0]])
    clusterings = [
        ((0, 1), (2, 3), (4, 5)),  # 1, 6, 24: intervals 18, 5
        ((0, 5), (1, 4), (2, 3)),  # 16, 9, 6: intervals 7, 3
        ((0, 2), (1, 5), (3, 4)),  # 2, 17, 12: intervals 5, 10
    ]
    mean_ranks, variance_ranks = np.array([3, 1, 2]), np.array([3, 1, 2])
    means = [(18 + 5) / 2, (7 + 3) / 2, (5 + 10) / 2]
    variances = [np.var([18, 5]), np.var([7, 3]), np.var([5, 10])]
    assert np.array_equal(np.argsort(np.argsort(means)) + 1, mean_ranks)
    assert np.array_equal(np.argsort(np.argsort(variances)) + 1, variance_ranks)
    for alpha in (0.0, 0.5, 3.0):
        np.testing.assert_allclose(clustering_scores(tmi, clusterings, alpha)[0], mean_ranks + alpha * variance_ranks)


def test_alpha_can_turn_a_vote() -> None:
    tmi = np.array([[8.0, 6.0, 5.0, 2.0, 3.0, 0.0]])
    narrow = ((0, 1), (2, 3), (4, 5))  # 14, 7, 3: intervals 7, 4
    even = ((0, 1), (2, 4), (3, 5))  # 14, 8, 2: intervals 6, 6
    assert count_votes(clustering_scores(tmi, [narrow, even], 0.5)) == [1, 0]
    assert count_votes(clustering_scores(tmi, [narrow, even], 2.0)) == [0, 1]


def test_equal_clusterings_share_a_rank_and_the_first_has_the_vote() -> None:
    tmi = np.array([[0.1, 0.2, 0.3, 0.4], [4.0, 3.0, 2.0, 1.0]])
    same = ((0, 3), (1, 2))
    scores = clustering_scores(tmi, [((0, 1), (2, 3)), same, same], 0.5)
    # Mean ranks 3, 1, 1; two groups have one interval, so all variances are 0 and share rank 1.
    np.testing.assert_allclose(scores, [[3.5, 1.5, 1.5], [3.5, 1.5, 1.5]])
    assert count_votes(scores) == [0, 2, 0]


def test_window_and_step_choose_tickets_by_epoch() -> None:
    assert epochs(tickets_in_window(EPOCHS, "", 1)) == [35, 40, 45, 50]
    assert epochs(tickets_in_window(EPOCHS, "40:45", 1)) == [40, 45]
    assert epochs(tickets_in_window(EPOCHS, "41:", 1)) == [45, 50]
    assert epochs(tickets_in_window(EPOCHS, ":40", 1)) == [35, 40]
    assert epochs(tickets_in_window(EPOCHS, "", 2)) == [35, 45]
    assert tickets_in_window([], "1:2", 1) == ()


def test_an_empty_window_is_an_error_that_lists_the_epochs() -> None:
    with pytest.raises(InputError, match="leaves none of the 4 tickets; expected .* 35, 40, 45, 50"):
        tickets_in_window(EPOCHS, "1:20", 1)


@pytest.mark.parametrize("window", ["35", "a:b", "70:35", "1:2:3", "-1:5"])
def test_a_malformed_window_is_an_error(window: str) -> None:
    with pytest.raises(InputError, match=r'expected "FIRST:LAST" epochs'):
        tickets_in_window(EPOCHS, window, 1)


def ticket(epoch: int, weight: np.ndarray) -> Ticket:
    return Ticket(epoch, f"epoch_{epoch}.pt", {"conv": weight})


def test_a_ticket_without_the_layer_is_named() -> None:
    with pytest.raises(
        InputError, match=r"epoch_35.pt: the ticket has no weight for layer conv; expected shape \(4, 2, 3, 3\)"
    ):
        check_tickets([Ticket(35, "epoch_35.pt", {})], FINAL, [LAYER])


def test_a_ticket_of_another_network_is_named_with_both_shapes() -> None:
    with pytest.raises(InputError, match=r"has shape \(4, 2, 1, 1\) in layer conv; expected shape \(4, 2, 3, 3\)"):
        check_tickets([ticket(35, np.zeros((4, 2, 1, 1), np.float32))], FINAL, [LAYER])


def test_a_ticket_that_diverged_is_named() -> None:
    with pytest.raises(InputError, match=r"epoch_35.pt: .* NaN or infinite weights in layer conv"):
        check_tickets([ticket(35, np.full((4, 2, 3, 3), np.nan, np.float32))], FINAL, [LAYER])


def test_tickets_of_the_final_epoch_only_are_an_error() -> None:
    final_only = [ticket(300, FINAL["conv"].copy()), ticket(299, FINAL["conv"].copy())]
    with pytest.raises(InputError, match="hold the final epoch only: epoch_300.pt, epoch_299.pt .* earlier epochs"):
        check_tickets(final_only, FINAL, [LAYER])


def test_the_final_weights_among_the_tickets_have_no_vote() -> None:
    kept, note = check_tickets([ticket(35, 0.5 * FINAL["conv"]), ticket(300, FINAL["conv"].copy())], FINAL, [LAYER])
    assert epochs(kept) == [35]
    assert "epoch_300.pt" in note
