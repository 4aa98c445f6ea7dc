"""Numbers and acknowledgements, without a network."""

from __future__ import annotations

from edgeprune.cluster.transport.links import BEAT_S, LOST_AFTER_S, SLOWEST_BYTES_PER_S, Incoming, Outgoing
from edgeprune.cluster.transport.messages import Beat
from edgeprune.cluster.transport.peers import Heard, Lost, Peer, Sender, sender_in


def test_a_jump_in_the_numbers_is_a_gap() -> None:
    link = Incoming()
    found = [link.accept(5, number) for number in (1, 2, 4, 5, 5, 3)]
    assert found == ["next", "next", "gap", "next", "old", "old"]
    assert (link.accept(6, 1), link.accept(7, 2)) == ("next", "gap")


def test_what_is_not_acknowledged_is_overdue_later_the_larger_it_is() -> None:
    link = Outgoing(5)
    limit = LOST_AFTER_S + BEAT_S
    assert link.next(0, now=0.0) == (5, 1)
    assert link.next(SLOWEST_BYTES_PER_S, now=0.0) == (5, 2)
    assert not link.is_overdue(limit)
    assert link.is_overdue(limit + 0.1)
    link.acknowledge(5, 1, now=1.0)
    assert not link.is_overdue(1.0 + limit + 1.0)
    assert link.is_overdue(1.0 + limit + 1.1)
    link.acknowledge(4, 2, now=1.0)  # of an earlier epoch
    link.acknowledge(5, 3, now=1.0)  # of a frame that was never sent
    assert link.is_overdue(9.0)
    link.acknowledge(5, 2, now=1.0)
    assert not link.is_overdue(99.0)


def test_a_new_epoch_begins_with_number_one() -> None:
    link = Outgoing(5)
    link.next(0, now=0.0)
    link.reset()
    assert not link.is_overdue(99.0)
    assert link.next(0, now=0.0) == (6, 1)


def peer() -> Peer:
    return Peer("pi/worker", True, Sender(lambda: None, lambda epoch: True, "pi"), heard_at=0.0)


def test_a_peer_is_heard_lost_and_heard_again() -> None:
    one = peer()
    assert one.note_beat(7, Beat(), now=0.0) == [Heard("pi/worker")]
    assert one.note_beat(7, Beat(), now=0.5) == []
    assert one.check(0.5 + LOST_AFTER_S) == []
    (lost,) = one.check(0.6 + LOST_AFTER_S)
    assert isinstance(lost, Lost)
    assert one.check(99.0) == []
    assert one.note_beat(7, Beat(), now=99.0) == [Heard("pi/worker")]


def test_a_peer_that_was_restarted_is_lost_and_heard() -> None:
    one = peer()
    one.note_beat(7, Beat(), now=0.0)
    assert one.note_beat(8, Beat(), now=0.1) == [Lost("pi/worker", "was restarted"), Heard("pi/worker")]


def test_a_peer_that_does_not_acknowledge_is_lost_though_it_is_heard() -> None:
    one = peer()
    one.note_beat(7, Beat(), now=0.0)
    one.outgoing.next(0, now=0.0)
    one.note_beat(7, Beat(), now=3.0)
    assert one.check(3.0) == [Lost("pi/worker", "does not acknowledge what it is sent")]


def test_a_sender_is_taken_from_the_key_alone_if_it_is_an_address() -> None:
    assert sender_in("edgeprune/pi/worker/host/ab12", "pi/worker") == "host/ab12"
    for key in ("edgeprune/pi/worker/*/ab", "edgeprune/pi/worker/host", "edgeprune/pi/worker/a/b/c", "else/a/b"):
        assert sender_in(key, "pi/worker") == ""
